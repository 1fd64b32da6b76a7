"""The truth of a sweep: an append-only file of JSON lines, each on disk before it counts.

`<sweep>/ledger.jsonl` holds one object a line: `seq` (0, 1, ...), `time` (unix seconds), `event`,
`trial` (fingerprint or null), the event's own fields, and `crc`, the crc32 of the line's canonical
JSON without `crc`. docs/architecture.md lists the events. A last line cut short by a crash never
counted and is dropped; a damaged line before the end is an error, because what follows rests on it.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, Self

from replora.atomic import sync_folder
from replora.errors import LedgerError, MachineError
from sweeps.lines import Line, encode, plain, scan, understood, walk
from sweeps.views import Stage, State, SweepView, TrialView

__all__ = [
    "LEDGER_NAME",
    "Entry",
    "Ledger",
    "Line",
    "Stage",
    "State",
    "SweepView",
    "TrialView",
    "read_ledger",
    "read_lines",
]

LEDGER_NAME = "ledger.jsonl"
LOCK_NAME = ".lock"


def read_ledger(folder: Path) -> SweepView:
    """What a sweep's folder says, at this moment; safe beside a writer.

    Raises:
        LedgerError: If the folder has no ledger, an empty one, or one that is damaged before its end.
    """
    view = SweepView()
    for line in read_lines(folder):
        with understood(f"line {view.size + 1}"):
            view.apply(line)
    if not view.size:
        raise LedgerError(
            f"{folder / LEDGER_NAME}: no line was completed; give the same `replora sweep` again"
        )
    return view


class Entry(NamedTuple):
    """An event to be recorded; `fields` are the event's own, as docs/architecture.md lists them."""

    event: str
    trial: str | None
    fields: Mapping[str, Any]


class Ledger:
    """The one writer of a sweep's ledger; it holds the folder's lock until it is closed.

    Use `Ledger.open`. A failed append (for example on a full disk) leaves the file as it was.
    """

    def __init__(self, path: Path, lock: BinaryIO) -> None:
        self.path = path
        self._lock = lock
        self._file: BinaryIO | None = None
        try:
            self._seq, self._end = scan(path)
            self._file = path.open("ab", buffering=0)
            self._file.truncate(self._end)
            sync_folder(path.parent)
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, folder: Path) -> Ledger:
        """The ledger of a folder, new or old, with a torn last line cut off.

        Raises:
            LedgerError: If another process drives the sweep, or a line before the end is damaged.
            MachineError: If the folder cannot be made or written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return cls(folder / LEDGER_NAME, _lock(folder))
        except OSError as error:
            raise MachineError(
                f"{folder}: the sweep's folder cannot be written ({error.strerror}). Name another with --dir."
            ) from error

    @property
    def size(self) -> int:
        """Lines that count."""
        return self._seq

    def lines(self) -> Iterator[Line]:
        """All lines that count, first to last."""
        return read_lines(self.path.parent)

    def append(self, event: str, trial: str | None = None, **fields: Any) -> Line:
        """The recorded line; it is on disk when this returns."""
        return self.append_all([Entry(event, trial, fields)])[0]

    def append_all(self, entries: Iterable[Entry]) -> list[Line]:
        """The recorded lines of several events: one write and one flush to disk for all.

        Raises:
            LedgerError: If they could not be written; then none of them counts.
        """
        if self._file is None:
            raise LedgerError(f"{self.path}: the ledger is closed, nothing can be recorded")
        now = round(time.time(), 6)
        lines = [
            {**plain(entry.fields), "seq": seq, "time": now, "event": entry.event, "trial": entry.trial}
            for seq, entry in enumerate(entries, self._seq)
        ]
        data = b"".join(encode(line) for line in lines)
        try:
            _write_all(self._file, data)
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._undo(error) from error
        self._seq += len(lines)
        self._end += len(data)
        return lines

    def _undo(self, error: OSError) -> LedgerError:
        """Cuts off what a failed write left, and says what to do."""
        assert self._file is not None
        try:
            self._file.truncate(self._end)
        except OSError:
            self.close()  # the torn line is cut off when the ledger is opened again
        return LedgerError(
            f"{self.path}: line {self._seq + 1} could not be written ({error.strerror}). "
            f"What was recorded before is safe.\n"
            f"  Free some disk space, then: replora resume {self.path.parent}"
        )

    def close(self) -> None:
        """Gives the folder back to other processes."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_lines(folder: Path, *, offset: int = 0) -> Iterator[Line]:
    """The ledger's lines that count, first to last, one in memory at a time; safe beside a writer.

    Args:
        folder: The sweep's folder.
        offset: Lines to leave out at the start.

    Raises:
        LedgerError: If the folder has no ledger, or a line before the last is damaged.
    """
    path = folder / LEDGER_NAME
    for number, (line, _) in enumerate(walk(path)):
        if number >= offset:
            yield line


def _write_all(file: BinaryIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _lock(folder: Path) -> BinaryIO:
    lock = (folder / LOCK_NAME).open("a+b")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.seek(0)
        holder = lock.read(200).decode(errors="replace") or "unknown"
        lock.close()
        raise LedgerError(
            f"{folder}: another process drives this sweep ({holder}). Wait for it, or end it, and try again."
        ) from error
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
    lock.flush()
    return lock
