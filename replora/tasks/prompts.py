"""Prompts and answers of commonsense reasoning."""

from __future__ import annotations

import re
from typing import Literal

from replora.tasks.commonsense_data import FORMS, Item, form_of

__all__ = ["RESPONSE", "answer_in", "evaluation_prompt", "is_right", "training_prompt"]

Template = Literal["clean", "parity"]

#: What an answer follows.
RESPONSE = "### Response:"

_TASK = "Below is an instruction that describes a task"
_ASKED = "Write a response that appropriately completes the request."
_PLAIN = f"{_TASK}. {_ASKED}"
_WITH_INPUT = f"{_TASK}, paired with an input that provides further context. {_ASKED}"
_INDENT = " " * 16


def training_prompt(item: Item, template: Template) -> str:
    """What precedes an item's `output` in a training text.

    `parity` is known: the published training code indents every line and leaves spaces after the
    first line (two, or one with an input) and on the blank lines between the sections.
    """
    if template == "clean":
        return _clean(item)
    first = f"{_WITH_INPUT} \n" if item.input else f"{_PLAIN}  \n"
    return first + _indented(item, between=_INDENT)


def evaluation_prompt(item: Item, template: Template) -> str:
    """What a model is asked to go on from.

    `parity` is known: the published evaluation code has other spaces than its training code (one after
    the first line, or none with an input; none on blank lines).
    """
    if template == "clean":
        return _clean(item)
    first = f"{_WITH_INPUT}\n" if item.input else f"{_PLAIN} \n"
    return first + _indented(item, between="")


def answer_in(text: str, form: str) -> str:
    """The first answer of a form in a text after its last `### Response:`; empty where there is none.

    Args:
        text: Generated text.
        form: A key of `FORMS`.
    """
    found = re.search("|".join(FORMS[form]), text.rpartition(RESPONSE)[2])
    return found.group() if found else ""


def is_right(text: str, item: Item) -> bool:
    """Whether a generated text answers an item; no answer is wrong (known)."""
    return answer_in(text, form_of(item.answer)) == item.answer


def _clean(item: Item) -> str:
    first = _WITH_INPUT if item.input else _PLAIN
    sections = [first, f"### Instruction:\n{item.instruction}"]
    if item.input:
        sections.append(f"### Input:\n{item.input}")
    return "\n\n".join([*sections, f"{RESPONSE}\n"])


def _indented(item: Item, between: str) -> str:
    sections = [f"### Instruction:\n{_INDENT}{item.instruction}"]
    if item.input:
        sections.append(f"### Input:\n{_INDENT}{item.input}")
    sections.append(f"{RESPONSE}\n{_INDENT}")
    return "\n" + f"\n{between}\n".join(_INDENT + section for section in sections)
