"""The truth of a sweep: an append-only file of JSON lines, each on disk before it counts.

`<sweep>/ledger.jsonl` holds one object a line: `seq` (0, 1, ...), `time` (unix seconds), `event`,
`trial` (fingerprint or null), the event's own fields, and `crc`, the crc32 of the line's canonical
JSON without `crc`. docs/architecture.md lists the events. A last line cut short by a crash never
counted and is dropped; a damaged line before the end is an error, because what follows rests on it.
"""

from __future__ import annotations

import fcntl
import math
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, NamedTuple, Self

from replora.errors import LedgerError
from sweeps.lines import Line, encode, plain, scan, walk

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
Stage = Literal["search", "confirm", "final"]
State = Literal["asked", "running", "finished", "pruned", "failed"]


@dataclass(slots=True)
class TrialView:
    """What the ledger says of one trial.

    Attributes:
        number: Order in which the trial was asked for, from 0.
        config: The whole RunConfig as plain data; `point` is the part that the sweep varied.
        step: Optimizer steps done, as far as the ledger knows.
        objective: Value at the last step of a finished trial, at the stop of a pruned one, else None.
        metrics: Those of the last report.
        reports: Step and metrics of every evaluation, in order of steps.
        reason: Why it failed or was pruned.
        kind: Of a failure, else the empty string.
        seconds: Time from the last start to the finish.
        adapter: Folder of the adapter, relative to the sweep's folder where it lies inside.
        attempts: Times it was started.
    """

    fingerprint: str
    number: int
    stage: Stage
    state: State
    config: dict[str, Any]
    point: dict[str, Any]
    seed: int
    step: int = 0
    objective: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    reports: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    reason: str = ""
    kind: str = ""
    seconds: float | None = None
    adapter: str = ""
    host: str = ""
    attempts: int = 0

    @property
    def ended(self) -> bool:
        """Nothing is left to do for it."""
        return self.state in ("finished", "pruned", "failed")


@dataclass(slots=True)
class SweepView:
    """What the ledger says of a whole sweep; `apply` adds a line.

    Attributes:
        fingerprint: Of the SweepConfig.
        config: The SweepConfig as plain data.
        trials: By fingerprint, in order of their numbers.
        closed: State at the end (`done` or `failed`), or None while something is left to do.
        size: Lines seen.
        started: Time of the first line, in unix seconds.
        updated: Time of the last line.
        data: Hash of the data that the trials read; empty until a host has told it.
        data_open: Other data would be accepted, since a person has accepted changes.
        skipped: Proposals that became no trial, being invalid or known already.
    """

    fingerprint: str = ""
    name: str = ""
    metric: str = ""
    direction: Literal["maximize", "minimize"] = "maximize"
    versions: dict[str, str] = field(default_factory=dict)
    git: str = ""
    trials: dict[str, TrialView] = field(default_factory=dict)
    closed: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    size: int = 0
    started: float = 0.0
    updated: float = 0.0
    data: str = ""
    data_open: bool = False
    skipped: int = 0

    def apply(self, line: Line) -> None:
        """Takes in the next line of the ledger."""
        self.size += 1
        self.updated = line["time"]
        event = line["event"]
        if event == "sweep":
            self.fingerprint, self.name, self.git = line["sweep"], line["name"], line["git"]
            self.metric, self.direction, self.versions = line["metric"], line["direction"], line["versions"]
            self.config, self.started = line.get("config", {}), line["time"]
        elif event == "resumed":
            self.versions, self.closed = line["versions"], None
            self.data_open = self.data_open or bool(line["accepted"])
            self.config = line.get("config", self.config)
        elif event == "closed":
            self.closed = line["state"]
        elif event == "skipped":
            self.skipped += 1
        elif event == "asked":
            fields = {name: line[name] for name in ("number", "stage", "config", "point", "seed")}
            self.trials[line["trial"]] = TrialView(line["trial"], state="asked", **fields)
        elif line["trial"] is not None:
            _APPLY[event](self.trials[line["trial"]], line)
            if line.get("data") and (self.data_open or not self.data):
                self.data, self.data_open = line["data"], False


def _started(trial: TrialView, line: Line) -> None:
    trial.state, trial.host, trial.attempts = "running", line["host"], line["attempt"]


def _reported(trial: TrialView, line: Line) -> None:
    trial.step, trial.metrics = line["step"], _floats(line["metrics"])
    trial.reports.append((trial.step, trial.metrics))


def _checkpointed(trial: TrialView, line: Line) -> None:
    trial.step = max(trial.step, line["step"])


def _finished(trial: TrialView, line: Line) -> None:
    trial.state, trial.step, trial.objective = "finished", line["step"], line["objective"]
    trial.metrics, trial.adapter, trial.seconds = _floats(line["metrics"]), line["adapter"], line["seconds"]
    trial.reason, trial.kind = "", ""


def _pruned(trial: TrialView, line: Line) -> None:
    trial.state, trial.step, trial.objective, trial.reason = (
        "pruned", line["step"], line["objective"], line["reason"],
    )  # fmt: skip
    trial.kind = ""


def _failed(trial: TrialView, line: Line) -> None:
    trial.state = "failed" if line["final"] else "asked"
    trial.reason, trial.kind = line["reason"], line["kind"]


_APPLY = {
    "started": _started,
    "reported": _reported,
    "checkpointed": _checkpointed,
    "finished": _finished,
    "pruned": _pruned,
    "failed": _failed,
}


def read_ledger(folder: Path) -> SweepView:
    """What a sweep's folder says, at this moment; safe beside a writer.

    Raises:
        LedgerError: If the folder has no ledger, an empty one, or one that is damaged before its end.
    """
    view = SweepView()
    for line in read_lines(folder):
        view.apply(line)
    if not view.size:
        raise LedgerError(f"{folder / LEDGER_NAME}: no line was completed; give the same command again")
    return view


def _floats(metrics: Mapping[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else value for name, value in metrics.items()}


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
            _sync_folder(path.parent)
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, folder: Path) -> Ledger:
        """The ledger of a folder, new or old, with a torn last line cut off.

        Raises:
            LedgerError: If another process drives the sweep, or a line before the end is damaged.
        """
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder / LEDGER_NAME, _lock(folder))

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


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _lock(folder: Path) -> BinaryIO:
    lock = (folder / LOCK_NAME).open("a+b")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
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
