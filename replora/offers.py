"""What other installed packages offer to this one: verbs and catalogs, found through entry points."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import metadata
from typing import Any

__all__ = ["offers"]


def offers(group: str) -> Iterator[tuple[str, Any]]:
    """Name and loaded object of every entry point of a group, by name.

    A package that cannot be imported is named on stderr and left out, so that the verbs of the others
    still work.
    """
    for entry in sorted(metadata.entry_points(group=group), key=lambda entry: entry.name):
        try:
            offered = entry.load()
        except (ImportError, AttributeError) as error:
            sys.stderr.write(f"Warning: {entry.value} of {group} cannot be imported: {error}.\n")
            continue
        yield entry.name, offered
