"""What is wrong with a configuration, and one error that says all of it with file and line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from replora.errors import ConfigError

__all__ = ["Fault", "Keys", "Origin", "Origins", "config_error", "dotted", "shown"]

#: Where a value stands in a configuration: field names, keys of mappings and positions in lists.
Keys = tuple[str | int, ...]


class Origin(NamedTuple):
    """Where a value was written: a file and its line, or words such as `override seed=x` without a line."""

    place: str
    line: int | None = None

    def __str__(self) -> str:
        return self.place if self.line is None else f"{self.place}:{self.line}"


Origins = Mapping[Keys, Origin]


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Attributes:
        keys: Where in the configuration; `()` for the whole of it.
        text: A whole sentence with the dotted key, what it must be and what it is.
        hint: What to do: the nearest valid name, the list of valid ones.
        origin: Where it was written, if not where the value at `keys` was.
    """

    keys: Keys
    text: str
    hint: str = ""
    origin: Origin | None = None


def config_error(faults: Iterable[Fault], origins: Origins, place: str) -> ConfigError:
    """One error with every fault: those of files in the order of their lines, then those of overrides.

    Args:
        faults: At least one.
        origins: Where the values were written; a fault is placed by its longest known prefix.
        place: What to blame where no origin is known, for example the file's name.
    """
    placed = sorted(
        {(_origin(fault, origins) or Origin(place), fault.text, fault.hint) for fault in faults},
        key=lambda found: (found[0].line is None, found[0].place, found[0].line or 0, found[1]),
    )
    entries = [f"{origin}: {text}" + (f"\n  {hint}" if hint else "") for origin, text, hint in placed]
    if len(entries) == 1:
        return ConfigError(entries[0])
    listed = "\n".join("  " + entry.replace("\n", "\n  ") for entry in entries)
    return ConfigError(f"{place} has {len(entries)} faults:\n{listed}")


def dotted(keys: Keys) -> str:
    """Keys as a user writes them: `optim.lr`, `seeds[1]`."""
    text = ""
    for key in keys:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else printable(key)
    return text


def shown(value: object, limit: int = 60) -> str:
    """A value as it appears in a message: YAML's words for null, true and false, and never long."""
    match value:
        case None:
            text = "null"
        case bool():
            text = str(value).lower()
        case _:
            text = printable(repr(value))
    return text if len(text) <= limit else f"{text[:limit]}..."


def printable(text: str) -> str:
    """Text without control characters and lone surrogates, which terminals and pipes do not take.

    A password in an address becomes `***`: messages end up in logs.
    """
    text = text if text.isprintable() else ascii(text)
    return re.sub(r"(://[^/\s:@]*):[^/\s@]*@", r"\1:***@", text)


def _origin(fault: Fault, origins: Origins) -> Origin | None:
    prefixes = (fault.keys[:length] for length in range(len(fault.keys), -1, -1))
    return fault.origin or next((origins[keys] for keys in prefixes if keys in origins), None)
