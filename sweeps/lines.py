"""The form of a ledger's lines: canonical JSON with a checksum, and the walk over a file of them."""

from __future__ import annotations

import json
import math
import shlex
import zlib
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from replora.errors import LedgerError, ReploraError

__all__ = ["Line", "encode", "plain", "scan", "understood", "walk"]

Line = dict[str, Any]


def walk(path: Path) -> Iterator[tuple[Line, int]]:
    """Good lines with the byte offsets of their ends, one in memory at a time.

    A last line that is torn or damaged ends the walk.

    Raises:
        LedgerError: If there is no file, or a line before the last is damaged.
    """
    try:
        file = path.open("rb")
    except (FileNotFoundError, NotADirectoryError) as error:
        why = f"it has no {path.name}" if path.parent.is_dir() else "there is no such folder"
        raise LedgerError(
            f"{path.parent}: not a sweep's folder, {why}.\n"
            "  `replora sweep` makes one and prints its name (runs/<name>, unless --dir says otherwise)."
        ) from error
    with file:
        end = 0
        for seq, raw in enumerate(file):
            line = _decode(raw, seq)
            if line is None:
                # Without a newline it is the end, though a writer may have gone on since it was read.
                if raw.endswith(b"\n") and file.read(1):
                    raise _damaged(path, seq)
                return
            end += len(raw)
            yield line, end


def scan(path: Path) -> tuple[int, int]:
    """Number of good lines and the byte offset of their end; (0, 0) for a new file."""
    last = deque(walk(path), maxlen=1) if path.exists() else None
    return (last[0][0]["seq"] + 1, last[0][1]) if last else (0, 0)


@contextmanager
def understood(what: str) -> Iterator[None]:
    """Turns what goes wrong with whole, undamaged lines into an error that names them.

    Args:
        what: The line or lines that are taken in.

    Raises:
        LedgerError: If a field is missing or of another kind than this version writes.
    """
    try:
        yield
    except ReploraError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise LedgerError(
            f"{what} of the ledger cannot be understood: {error!r}.\n"
            f"  Nothing is damaged: another version of this program wrote it. Go on with that version."
        ) from error


def _damaged(path: Path, seq: int) -> LedgerError:
    old, new = shlex.quote(str(path)), shlex.quote(f"{path}.good")
    return LedgerError(
        f"{path}: line {seq + 1} is damaged (its checksum or number does not fit), and more lines follow.\n"
        f"  Restore the file from a copy; or keep what is before it and train the rest again:\n"
        f"  head -n {seq} {old} > {new} && mv {new} {old}"
    )


def encode(line: Line) -> bytes:
    """A line as it stands in the file."""
    body = _canonical(line)
    return b'%s,"crc":"%08x"}\n' % (body[:-1], zlib.crc32(body))


def _decode(raw: bytes, seq: int) -> Line | None:
    """The line, or None where it is torn or damaged. `raw` ends with `,"crc":"xxxxxxxx"}` and a newline."""
    body, mark, tail = raw.rpartition(b',"crc":"')
    if not mark or len(tail) != 11 or tail[8:] != b'"}\n' or tail[:8] != b"%08x" % zlib.crc32(body + b"}"):
        return None
    line: Line = json.loads(body + b"}")
    return line if line.get("seq") == seq else None


def _canonical(line: Line) -> bytes:
    return json.dumps(line, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: they are recorded as null and read back as NaN."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
