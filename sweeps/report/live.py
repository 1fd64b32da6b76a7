"""What a person sees while a sweep runs: a table on a terminal, plain lines anywhere else."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sweeps.ledger import SweepView, TrialView
from sweeps.report.progress import Progress, last_metric, planned_steps
from sweeps.report.words import duration, number, plain, point_text

__all__ = ["LiveTable"]

_REFRESH_S = 0.25
_LOG_S = 10.0
# A draw may cost at most this share of one core: what it takes is taken from the training.
_SHARE = 0.02


class _Screen(Protocol):
    """Where progress goes."""

    def events(self, view: SweepView, trials: list[TrialView], best: TrialView | None) -> None:
        """Says what happened to trials since the last call."""
        ...

    def draw(self, view: SweepView, progress: Progress, elapsed: float, left: float | None) -> None:
        """Shows the state of the sweep."""
        ...

    def close(self) -> None:
        """Leaves the terminal as it was."""
        ...


class LiveTable:
    """Shows a running sweep on a stream, as a context manager.

    On a terminal it redraws a table, at most four times a second and never with more than 2 % of
    one core. Elsewhere it writes one plain line for each trial that ends and one about the whole
    every ten seconds. Call `update` after every event, and about once a second in between: calls
    that come too early return at once.

    Args:
        slots: Trials that can train at the same time.
        trials: Trials of the whole sweep, or None where nobody knows.
        stream: Where to write; standard error by default, since answers go to standard output.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        slots: int,
        trials: int | None = None,
        *,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        target = sys.stderr if stream is None else stream
        self._clock = clock
        self._progress = Progress(trials)
        self._screen: _Screen = _Table(target, slots) if _can_draw(target) else _Log(target, slots)
        self._view: SweepView | None = None
        self._start = clock()
        self._next = self._start

    def __enter__(self) -> LiveTable:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._view is not None:
            self._show(self._view)
        self._screen.close()

    def update(self, view: SweepView) -> None:
        """Takes in the sweep as it is now and draws it if that is due."""
        self._view = view
        if self._clock() >= self._next:
            self._show(view)

    def _show(self, view: SweepView) -> None:
        now, cpu = self._clock(), time.thread_time()
        best = self._progress.best
        changed = self._progress.update(view, now)
        self._screen.events(view, changed, None if self._progress.best is best else self._progress.best)
        self._screen.draw(view, self._progress, now - self._start, self._progress.seconds_left(now))
        self._next = now + max(_REFRESH_S, (time.thread_time() - cpu) / _SHARE)


def _can_draw(stream: TextIO) -> bool:
    dumb = os.environ.get("TERM", "") in ("", "dumb", "unknown")
    encoding = (stream.encoding or "").lower().replace("-", "")
    return stream.isatty() and not dumb and encoding == "utf8"


def _time_left(left: float | None) -> str:
    return "time left unknown" if left is None else f"about {duration(left)} left"


def _counts(progress: Progress) -> str:
    total = "" if progress.planned is None else f" of {progress.planned}"
    kinds = [f"{progress.counts[state]} {state}" for state in ("finished", "pruned", "failed")]
    return f"{progress.over}{total} trials over ({', '.join(kinds)})"


def _score(view: SweepView, trial: TrialView) -> str:
    return f"{plain(view.metric, 40)} {number(trial.objective)}"


class _Log:
    """One plain line for each thing that matters; no control characters."""

    def __init__(self, stream: TextIO, slots: int) -> None:
        self._stream = stream
        self._slots = slots
        self._next = 0.0

    def events(self, view: SweepView, trials: list[TrialView], best: TrialView | None) -> None:
        for trial in trials:
            if trial.state in ("finished", "pruned", "failed"):
                self._write(f"trial {trial.number} {_outcome(view, trial)}; {point_text(trial.point)}")
        if best is not None:
            self._write(f"new best: trial {best.number}, {_score(view, best)}; {point_text(best.point)}")

    def draw(self, view: SweepView, progress: Progress, elapsed: float, left: float | None) -> None:
        if elapsed < self._next:
            return
        self._next = elapsed + _LOG_S
        running = f"{len(progress.running)} running in {self._slots} slots"
        self._write(f"{_counts(progress)}, {running}, {duration(elapsed)} elapsed, {_time_left(left)}")

    def close(self) -> None:
        self._stream.flush()

    def _write(self, text: str) -> None:
        line = f"{time.strftime('%H:%M:%S')}  {plain(text, 2000)}\n"
        encoding = self._stream.encoding or "utf-8"
        self._stream.write(line.encode(encoding, "replace").decode(encoding))
        self._stream.flush()


def _outcome(view: SweepView, trial: TrialView) -> str:
    if trial.state == "finished":
        return f"finished: {_score(view, trial)} after {trial.step} steps"
    if trial.state == "pruned":
        return f"pruned: {_score(view, trial)} at step {trial.step} of {planned_steps(trial)}"
    return f"failed at step {trial.step}: {plain(trial.reason or 'no reason recorded')}"


class _Table:
    """A table that is drawn over itself."""

    def __init__(self, stream: TextIO, slots: int) -> None:
        self._slots = slots
        self._console = Console(file=stream, highlight=False)
        own = stream is sys.stderr
        self._live = Live(
            console=self._console, auto_refresh=False, redirect_stdout=False, redirect_stderr=own
        )
        self._live.start()

    def events(self, view: SweepView, trials: list[TrialView], best: TrialView | None) -> None:
        for trial in trials:
            if trial.state == "failed":
                self._console.print(Text(f"trial {trial.number} {_outcome(view, trial)}", style="red"))

    def draw(self, view: SweepView, progress: Progress, elapsed: float, left: float | None) -> None:
        head = self._head(view, progress, elapsed, left)
        rows = self._console.height - len(head) - 4
        self._live.update(Group(*head, _running(view, progress, max(1, rows))), refresh=True)

    def close(self) -> None:
        self._live.stop()

    def _head(
        self, view: SweepView, progress: Progress, elapsed: float, left: float | None
    ) -> list[RenderableType]:
        times = f"{duration(elapsed)} elapsed, {_time_left(left)}"
        best = progress.best
        words = "none yet" if best is None else f"{_score(view, best)}, trial {best.number}"
        point = "" if best is None else point_text(best.point)
        slots = f"{len(progress.running)} of {self._slots} slots in use"
        return [
            _line((plain(view.name, 40), "bold"), ("  ", ""), (times, "dim")),
            ProgressBar(total=progress.planned or 1, completed=progress.over if progress.planned else 0),
            _line((_counts(progress), "")),
            _line((slots, "")),
            _line(("best so far: ", ""), (words, "bold green"), (f"  {point}", "green")),
        ]


def _line(*parts: tuple[str, str]) -> Text:
    return Text.assemble(*parts, no_wrap=True, overflow="ellipsis")


def _running(view: SweepView, progress: Progress, rows: int) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("trial", justify="right", no_wrap=True)
    table.add_column("step", justify="right", no_wrap=True)
    table.add_column(Text(plain(view.metric, 24)), justify="right", no_wrap=True)
    table.add_column("point", no_wrap=True, overflow="ellipsis", ratio=1)
    for trial in progress.running[:rows]:
        value = last_metric(trial, view.metric)
        steps = f"{trial.step}/{planned_steps(trial)}"
        last = "-" if value is None else number(value)
        table.add_row(str(trial.number), steps, last, Text(point_text(trial.point)))
    hidden = len(progress.running) - rows
    return Group(table, _line((f"and {hidden} more running", "dim"))) if hidden > 0 else table
