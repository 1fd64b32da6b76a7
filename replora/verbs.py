"""What a verb of the command line is, and the few words that verbs share. Imports nothing heavy."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Answer", "Follower", "Verb", "nearest", "table"]


@dataclass(frozen=True)
class Answer:
    """What a verb found or did.

    Attributes:
        document: JSON-able; printed as the only document on stdout under `--json`.
        text: What a person reads on stdout without `--json`.
        status: Exit status; 1 where a run failed but there is something to show.
    """

    document: object
    text: str
    status: int = 0


@dataclass(frozen=True)
class Verb:
    """One verb of `replora <verb>`; entry points of the group `replora.commands` load tuples of them.

    Attributes:
        name: The word that a user types.
        summary: One line for `replora --help`.
        configure: Adds the verb's own arguments to its parser.
        run: Does the work; imports torch and the like only when called.
        spends: Whether the verb spends time or money; it then takes `--dry-run`.
        trains: Whether a call trains or evaluates in its own process, which then starts again with the heap
            for that (replora.train.heap).
    """

    name: str
    summary: str
    configure: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], Answer]
    spends: bool = False
    trains: Callable[[argparse.Namespace], bool] = lambda options: False


@dataclass(frozen=True)
class Follower:
    """What an upper package does once a verb of a lower one is done; offered in the same tuples as verbs.

    Attributes:
        verb: Name of the verb.
        run: Takes its arguments and its answer; gives words for a person, or none. What it cannot do is
            no failure of the verb.
    """

    verb: str
    run: Callable[[argparse.Namespace, Answer], str]


def nearest(word: str, names: Iterable[str], prefix: str = "") -> str:
    """`Did you mean <prefix><name>? ` for the name closest to a word, or nothing if none is close."""
    found = difflib.get_close_matches(word.lower(), list(names), n=1, cutoff=0.6)
    return f"Did you mean {prefix}{found[0]}? " if found else ""


def table(rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> str:
    """Rows as lines of left-aligned columns under a header; an absent or null cell is empty."""
    cells = [[str(column) for column in columns]]
    cells += [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
    return "\n".join(line.rstrip() for line in lines)


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
