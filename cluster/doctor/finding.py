"""What an examination finds: one fact of the machine, and what to do where it is not well."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding", "bad", "doubtful", "good"]


@dataclass(frozen=True)
class Finding:
    """One fact.

    Attributes:
        name: What was looked at.
        state: `error` makes running impossible, `warning` may cost a user something, `ok` is fine.
        text: What was found.
        remedy: What to do; empty where all is well.
    """

    name: str
    state: Literal["ok", "warning", "error"]
    text: str
    remedy: str = ""


def good(name: str, text: str) -> Finding:
    """All is well."""
    return Finding(name, "ok", text)


def doubtful(name: str, text: str, remedy: str) -> Finding:
    """It runs, but not as it should."""
    return Finding(name, "warning", text, remedy)


def bad(name: str, text: str, remedy: str) -> Finding:
    """It cannot run."""
    return Finding(name, "error", text, remedy)
