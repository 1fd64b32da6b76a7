"""One ledger on its way into one tracking server, a chunk at a time. Free of MLflow."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

from sweeps.ledger import LEDGER_NAME
from sweeps.spool import Change, Translator, read_from
from sweeps.tracking import Delivered

__all__ = ["Delivery", "LostError", "RefusedError", "Session", "count_points"]

DOCUMENTS = ("sweep.yaml", "best.yaml", "report.html")


class RefusedError(Exception):
    """The server will never take this; trying again is of no use."""


class LostError(Exception):
    """The server lacks a run that it had: everything is to be delivered from the ledger's first line."""


class Session(Protocol):
    """A connection to a tracking server that knows the sweep's runs; each call may be repeated."""

    def log(self, change: Change) -> None:
        """Creates the run where needed; adds parameters, tags and points."""
        ...

    def keep(self, change: Change) -> None:
        """Stores the change's artifacts."""
        ...

    def end(self, change: Change) -> None:
        """Sets the run's status."""
        ...

    def keep_file(self, path: Path) -> None:
        """Stores a document of the whole sweep."""
        ...


class Delivery:
    """Reads the ledger, hands changes to a session, and notes how far it came.

    Every method may raise whatever the session raises, and may be called again after that.

    Args:
        folder: The sweep's folder; its ledger may still be missing.
        state: What was delivered before; kept up to date, in memory and in the folder.
        connect: Makes a session that fills in the run ids of the state it gets.

    Attributes:
        refused: What the server will never take, in words; `refused_points` counts the values among it.
        done: Everything is delivered and every run has its end.
    """

    def __init__(self, folder: Path, state: Delivered, connect: Callable[[Delivered], Session]) -> None:
        self.folder, self.state = folder, state
        self.refused: list[str] = []
        self.refused_points = 0
        self.done = False
        self._connect = connect
        self._session: Session | None = None
        self._translator = Translator()
        self._read_to = 0
        self._pending: list[Change] = []
        self._skipped: set[str | None] = set()

    def advance(self) -> bool:
        """Delivers the next lines of the ledger; False when there are none."""
        if not self._pending and not self._read():
            return False
        self._guarded(self._send)
        return True

    def finish(self) -> None:
        """Ends the runs that are still open and keeps the sweep's documents; call it after the last line.

        It is done when `done` is true; otherwise there are lines to deliver again.
        """
        self.done = not self.state.offset or self._guarded(self._close)

    def _close(self, session: Session) -> None:
        self._pending = self._translator.stop(round(time.time() * 1000))
        self._send(session)
        for name in DOCUMENTS:
            if (self.folder / name).is_file():
                self._try(partial(session.keep_file, self.folder / name), name)

    def _guarded(self, act: Callable[[Session], None]) -> bool:
        """Runs `act` on a session; False when the server lost what it had, and delivery begins anew."""
        try:
            if self._session is None:
                had_run = self.state.run
                self._session = self._connect(self.state)
                if had_run not in ("", self.state.run):
                    raise LostError
            act(self._session)
        except LostError:
            self._rewind()
            return False
        except Exception:
            self._session = None  # the next try looks up which runs the server has
            raise
        return True

    def _rewind(self) -> None:
        """Starts again from the first line; what the server has already, it takes no second time."""
        self.state.clear()
        self._session, self._translator, self._read_to = None, Translator(), 0
        self._pending, self._skipped = [], set()
        self.refused, self.refused_points = [], 0
        self.state.save(self.folder)

    def _read(self) -> bool:
        """Fills `_pending`; lines that are delivered already only teach the translator."""
        path = self.folder / LEDGER_NAME
        if not path.exists():
            return False
        if path.stat().st_size < max(self._read_to, self.state.offset):
            self._rewind()  # its writer took a line back
        while not self._pending:
            lines = read_from(self.folder, self._read_to)
            if not lines:
                return False
            for line, end in lines:
                if self._read_to == self.state.offset:
                    self._translator.take()
                self._translator.feed(line)
                self._read_to = end
                self._identify()
            changes = self._translator.take()
            self._pending = changes if self._read_to > self.state.offset else []
        return True

    def _identify(self) -> None:
        """Forgets what was delivered of another ledger that lay in this folder before."""
        if self.state.ledger != self._translator.ledger:
            if self.state.ledger:
                self.state.clear()
            self.state.ledger = self._translator.ledger

    def _send(self, session: Session) -> None:
        while self._pending:
            change = self._pending[0]
            if change.trial in self._skipped:
                self.refused_points += len(change.points)
            else:
                self._send_one(session, change)
            self._pending.pop(0)
        self.state.offset = self._read_to
        self.state.save(self.folder)

    def _send_one(self, session: Session, change: Change) -> None:
        name = f"trial {change.trial}" if change.trial else "the sweep's run"
        if self._try(partial(session.log, change), name):
            self._try(partial(session.keep, change), f"artifacts of {name}")
            session.end(change)
        else:
            self._skipped.add(change.trial)
            self.refused_points += len(change.points)

    def _try(self, act: Callable[[], None], what: str) -> bool:
        try:
            act()
        except RefusedError as error:
            self.refused.append(f"{what}: {error}")
            return False
        return True


def count_points(folder: Path, offset: int = 0) -> int:
    """Metric values in the lines of a ledger that end after a byte offset."""
    translator, count, read_to = Translator(), 0, 0
    while (folder / LEDGER_NAME).exists() and (lines := read_from(folder, read_to)):
        for line, end in lines:
            translator.feed(line)
            points = sum(len(change.points) for change in translator.take())
            count += points if end > offset else 0
        read_to = lines[-1][1]
    return count
