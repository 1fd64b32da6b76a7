"""Reader of the published commonsense data: lists of `{instruction, input, output, answer}`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from replora.config import COMMONSENSE_SETS, CommonsenseTask
from replora.errors import DataError

__all__ = ["FORMS", "SET_FORMS", "CommonsenseData", "Item", "form_of", "read_commonsense", "read_items"]

#: Form of an answer -> the answers that it allows (known).
FORMS: dict[str, tuple[str, ...]] = {
    "true/false": ("true", "false"),
    "solution": ("solution1", "solution2"),
    "answer": tuple(f"answer{number}" for number in range(1, 6)),
    "ending": tuple(f"ending{number}" for number in range(1, 5)),
    "option": ("option1", "option2"),
}
#: Form of each set's answers (known).
SET_FORMS: dict[str, str] = {
    "boolq": "true/false",
    "piqa": "solution",
    "siqa": "answer",
    "hellaswag": "ending",
    "winogrande": "option",
    "arc-e": "answer",
    "arc-c": "answer",
    "obqa": "answer",
}
_VAL_SEED = 42  # known
_KEYS = ("instruction", "input", "output", "answer")
_BY_ANSWER = {answer: form for form, answers in FORMS.items() for answer in answers}


@dataclass(frozen=True)
class Item:
    """One question: its `output` is the sentence to learn, its `answer` the word that is checked."""

    instruction: str
    input: str
    output: str
    answer: str


@dataclass(frozen=True)
class CommonsenseData:
    """What a task reads.

    Attributes:
        train: Items to learn from.
        val: Items of the training file that are held out.
        tests: Test items by set.
        data_hash: Over the content of all files that were read.
    """

    train: tuple[Item, ...]
    val: tuple[Item, ...]
    tests: dict[str, tuple[Item, ...]]
    data_hash: str


def form_of(answer: str) -> str:
    """The form that an answer has; a key of `FORMS`."""
    return _BY_ANSWER[answer]


def read_commonsense(config: CommonsenseTask) -> CommonsenseData:
    """The training file, divided, and the test files of the task's sets.

    Everything is read at once, so that a missing test file is found before the training. Held out are
    the first `val_items` of numpy's permutation of seed 42, as the published code's library draws
    them (recalled).

    Raises:
        DataError: If a file is missing or not in the published form, or too short to hold items out.
    """
    root = config.root.expanduser()
    digest = hashlib.sha256()
    train_file = root / config.train_file
    items = read_items(train_file, _BY_ANSWER, digest)
    if len(items) <= config.val_items:
        raise DataError(
            f"{train_file}: has {len(items)} items, but task.val_items holds {config.val_items} out.\n"
            "  Lower task.val_items."
        )
    order = np.random.default_rng(_VAL_SEED).permutation(len(items)).tolist()
    tests = {
        name: read_items(
            root / "dataset" / COMMONSENSE_SETS[name] / "test.json", FORMS[SET_FORMS[name]], digest
        )
        for name in _sets(config)
    }
    return CommonsenseData(
        train=tuple(items[index] for index in order[config.val_items :]),
        val=tuple(items[index] for index in order[: config.val_items]),
        tests={name: tuple(found) for name, found in tests.items()},
        data_hash=f"sha256:{digest.hexdigest()[:16]}",
    )


def read_items(path: Path, answers: Iterable[str], digest: Any) -> Sequence[Item]:
    """The items of one file.

    Args:
        path: A JSON list.
        answers: Answers that are allowed.
        digest: A hash that takes in the file's content.

    Raises:
        DataError: If the file is missing or no such list; the first wrong item is named by its number,
            from 0.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"task.root: {path} cannot be read ({error.strerror or error}).\n"
            "  The folder must hold the training file and dataset/<set>/test.json, as LLM-Adapters has them."
        ) from error
    digest.update(b"%d:" % len(content))
    digest.update(content)
    try:
        data = json.loads(content)
    except ValueError as error:
        raise DataError(
            f"{path}: is not JSON ({error}). The file may be cut short; fetch it again."
        ) from error
    if not isinstance(data, list) or not data:
        raise DataError(f"{path}: must be a list of items, but is {_shown(data)}.")
    allowed = tuple(answers)
    return [_item(path, number, entry, allowed) for number, entry in enumerate(data)]


def _item(path: Path, number: int, entry: object, answers: Sequence[str]) -> Item:
    if not isinstance(entry, dict):
        raise DataError(f"{path}: item {number} must have {', '.join(_KEYS)}, but is {_shown(entry)}.")
    missing = [key for key in _KEYS if key not in entry]
    if missing:
        found = ", ".join(map(str, entry)) or "nothing"
        raise DataError(f"{path}: item {number} has no {', '.join(missing)}; it has {found}.")
    for key in _KEYS:
        if not isinstance(entry[key], str):
            raise DataError(f"{path}: {key} of item {number} must be text, but is {_shown(entry[key])}.")
    if entry["answer"] not in answers:
        found = _shown(entry["answer"])
        raise DataError(
            f"{path}: answer of item {number} must be one of {', '.join(answers)}, but is {found}."
        )
    return Item(*(entry[key] for key in _KEYS))


def _sets(config: CommonsenseTask) -> tuple[str, ...]:
    name = config.name.removeprefix("commonsense").removeprefix("-")
    return (name,) if name else tuple(COMMONSENSE_SETS)


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
