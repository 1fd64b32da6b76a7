"""Prompts to the last space, and which answer is read out of a text."""

from __future__ import annotations

import pytest

from replora.tasks.commonsense_data import Item
from replora.tasks.prompts import answer_in, evaluation_prompt, is_right, training_prompt

PLAIN = Item("Is it?", "", "the correct answer is true", "true")
WITH_INPUT = Item("Is it?", "A thing.", "the correct answer is true", "true")
TASK = "Below is an instruction that describes a task"
ASKED = "Write a response that appropriately completes the request."
INDENT = " " * 16


def test_parity_training_prompt_has_the_published_spaces() -> None:
    assert training_prompt(PLAIN, "parity") == (
        f"{TASK}. {ASKED}  \n\n{INDENT}### Instruction:\n{INDENT}Is it?\n{INDENT}\n"
        f"{INDENT}### Response:\n{INDENT}"
    )


def test_parity_training_prompt_with_an_input_has_the_published_spaces() -> None:
    assert training_prompt(WITH_INPUT, "parity") == (
        f"{TASK}, paired with an input that provides further context. {ASKED} \n\n"
        f"{INDENT}### Instruction:\n{INDENT}Is it?\n{INDENT}\n"
        f"{INDENT}### Input:\n{INDENT}A thing.\n{INDENT}\n"
        f"{INDENT}### Response:\n{INDENT}"
    )


def test_parity_evaluation_prompt_has_other_spaces_than_in_training() -> None:
    assert evaluation_prompt(PLAIN, "parity") == (
        f"{TASK}. {ASKED} \n\n{INDENT}### Instruction:\n{INDENT}Is it?\n\n{INDENT}### Response:\n{INDENT}"
    )
    assert evaluation_prompt(WITH_INPUT, "parity") == (
        f"{TASK}, paired with an input that provides further context. {ASKED}\n\n"
        f"{INDENT}### Instruction:\n{INDENT}Is it?\n\n{INDENT}### Input:\n{INDENT}A thing.\n\n"
        f"{INDENT}### Response:\n{INDENT}"
    )


def test_clean_prompt_is_the_same_in_training_and_evaluation() -> None:
    assert training_prompt(PLAIN, "clean") == evaluation_prompt(PLAIN, "clean")
    assert evaluation_prompt(PLAIN, "clean") == (
        f"{TASK}. {ASKED}\n\n### Instruction:\nIs it?\n\n### Response:\n"
    )
    assert "### Input:\nA thing.\n\n### Response:\n" in evaluation_prompt(WITH_INPUT, "clean")


@pytest.mark.parametrize(
    ("text", "form", "answer"),
    [
        ("the correct answer is true", "true/false", "true"),
        ("false, not true", "true/false", "false"),
        ("answer3 answer1", "answer", "answer3"),
        ("option1\n### Response:\nthe correct answer is option2", "option", "option2"),
        ("option1\n### Response:\nnothing", "option", ""),
        ("ending5 then ending4", "ending", "ending4"),
        ("solution3", "solution", ""),
        ("TRUE", "true/false", ""),
        ("", "answer", ""),
    ],
)
def test_first_answer_after_the_last_response_counts(text: str, form: str, answer: str) -> None:
    assert answer_in(text, form) == answer


def test_text_without_an_answer_is_wrong() -> None:
    assert is_right("it is true", PLAIN)
    assert not is_right("it is false", PLAIN)
    assert not is_right("I do not know", PLAIN)
