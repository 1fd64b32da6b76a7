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
from rich.table import Table
from rich.text import Text

from sweeps.ledger import SweepView, TrialView
from sweeps.report.progress import Progress, last_metric, planned_steps
from sweeps.report.search_words import copy_text
from sweeps.report.words import duration, plain, point_text, score

__all__ = ["LiveTable"]

_REFRESH_S = 0.25
_LOG_S = 10.0
_FRONT = 12  # trials that are named
# A draw may cost at most this share of one core: what it takes is taken from the training.
_SHARE = 0.02


class _Screen(Protocol):
    """Where progress goes."""

    def events(self, trials: list[TrialView], best: TrialView | None) -> None:
        """Says what happened to trials since the last call."""
        ...

    def draw(self, progress: Progress, elapsed: float, left: float | None) -> None:
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
        view: The sweep, before this process starts a trial; the caller keeps it up to date.
        slots: Trials that can train at the same time.
        trials: Trials of the whole sweep, or None where nobody knows.
        stream: Where to write; standard error by default, since answers go to standard output.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        view: SweepView,
        slots: int,
        trials: int | None = None,
        *,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        target = sys.stderr if stream is None else stream
        self._clock = clock
        self._progress = Progress(view, trials)
        make = _Table if _can_draw(target) else _Log
        self._screen: _Screen = make(target, view, slots)
        self._start = clock()
        self._next = self._start

    def __enter__(self) -> LiveTable:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._show()
        self._screen.close()

    def update(self) -> None:
        """Shows the sweep as it is now, if that is due."""
        if self._clock() >= self._next:
            self._show()

    def _show(self) -> None:
        now, cpu = self._clock(), time.thread_time()
        progress, best = self._progress, self._progress.best
        changed = progress.update(now)
        self._screen.events(changed, None if progress.best is best else progress.best)
        self._screen.draw(progress, now - self._start, progress.seconds_left(now))
        self._next = now + max(_REFRESH_S, (time.thread_time() - cpu) / _SHARE)


def _can_draw(stream: TextIO) -> bool:
    dumb = os.environ.get("TERM", "") in ("", "dumb", "unknown")
    encoding = (stream.encoding or "").lower().replace("-", "")
    return stream.isatty() and not dumb and encoding == "utf8"


def _times(progress: Progress, elapsed: float, left: float | None) -> str:
    rest = "time left unknown" if left is None else f"about {duration(left)} left"
    return f"{duration(elapsed)} elapsed" + ("" if progress.over == progress.planned else f", {rest}")


def _point(view: SweepView, trial: TrialView) -> str:
    """Where in the space a trial is, and whose copy."""
    copied = copy_text(view, trial)
    return point_text(trial.point) + (f" ({copied})" if copied else "")


def _front(progress: Progress) -> str:
    numbers = [str(trial.number) for trial in progress.front[:_FRONT]]
    more = ", ..." if len(progress.front) > _FRONT else ""
    listed = f" (trials {', '.join(numbers)}{more})" if numbers else ""
    return f"on the Pareto front so far: {len(progress.front)}{listed}"


def _counts(progress: Progress) -> str:
    total = "" if progress.planned is None else f" of {progress.planned}"
    kinds = [f"{progress.counts[state]} {state}" for state in ("finished", "pruned", "failed")]
    return f"{progress.over}{total} trials over ({', '.join(kinds)})"


def _score(view: SweepView, trial: TrialView) -> str:
    return f"{plain(view.metric, 40)} {score(trial.objective)}"


class _Log:
    """One plain line for each thing that matters; no control characters."""

    def __init__(self, stream: TextIO, view: SweepView, slots: int) -> None:
        self._view = view
        self._stream = stream
        self._slots = slots
        self._next = 0.0

    def events(self, trials: list[TrialView], best: TrialView | None) -> None:
        for trial in trials:
            if trial.ended or (trial.state == "running" and trial.attempts > 1 and trial.reason):
                outcome, point = _outcome(self._view, trial), _point(self._view, trial)
                self._write(f"trial {trial.number} {outcome}; {point}")
        if best is not None:
            self._write(
                f"new best: trial {best.number}, {_score(self._view, best)}; {_point(self._view, best)}"
            )

    def draw(self, progress: Progress, elapsed: float, left: float | None) -> None:
        if elapsed < self._next:
            return
        self._next = elapsed + _LOG_S
        running = f"{len(progress.running)} running in {self._slots} slots"
        self._write(f"{_counts(progress)}, {running}, {_times(progress, elapsed, left)}")
        if len(self._view.objectives) > 1:
            self._write(_front(progress))

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
    reason = plain(trial.reason or "no reason recorded")
    if trial.state == "running":
        return f"started again (attempt {trial.attempts}) after: {reason}"
    return f"failed at step {trial.step}: {reason}"


class _Table:
    """A table that is drawn over itself."""

    def __init__(self, stream: TextIO, view: SweepView, slots: int) -> None:
        self._view = view
        self._slots = slots
        self._console = Console(file=stream, highlight=False, force_terminal=True)
        own = stream is sys.stderr
        self._live = Live(
            console=self._console, auto_refresh=False, redirect_stdout=False, redirect_stderr=own
        )
        self._live.start()

    def events(self, trials: list[TrialView], best: TrialView | None) -> None:
        for trial in trials:
            if trial.state == "failed":
                self._console.print(Text(f"trial {trial.number} {_outcome(self._view, trial)}", style="red"))

    def draw(self, progress: Progress, elapsed: float, left: float | None) -> None:
        head = self._head(progress, elapsed, left)
        rows = self._console.height - len(head) - 4
        self._live.update(Group(*head, _running(self._view, progress, max(1, rows))), refresh=True)

    def close(self) -> None:
        self._live.stop()

    def _head(self, progress: Progress, elapsed: float, left: float | None) -> list[RenderableType]:
        view, best = self._view, progress.best
        words = "none yet" if best is None else f"{_score(view, best)}, trial {best.number}"
        point = "" if best is None else _point(view, best)
        return [
            _line((plain(view.name, 40), "bold"), (f"  {_times(progress, elapsed, left)}", "dim")),
            _bar(progress, self._console.width),
            _line((_counts(progress), "")),
            _line((f"{len(progress.running)} of {self._slots} slots in use", "")),
            _line(("best so far: ", ""), (words, "bold green")),
            _line((f"  {point}", "green")),
            *([_line((_front(progress), ""))] if len(view.objectives) > 1 else []),
        ]


def _bar(progress: Progress, width: int) -> Text:
    """How much is over; heavy against light lines, so that it reads without colour too."""
    room = min(width, 80)
    done = room * progress.over // progress.planned if progress.planned else 0
    return _line(("━" * done, "green"), ("─" * (room - done), "dim"))


def _line(*parts: tuple[str, str]) -> Text:
    return Text.assemble(*parts, no_wrap=True, overflow="ellipsis")


def _running(view: SweepView, progress: Progress, rows: int) -> RenderableType:
    if not progress.running:
        return Text("no trial is running", style="dim")
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("trial", justify="right", no_wrap=True)
    table.add_column("step", justify="right", no_wrap=True)
    table.add_column(Text(plain(view.metric, 24)), justify="right", no_wrap=True)
    table.add_column("point", no_wrap=True, overflow="ellipsis", ratio=1)
    for trial in progress.running[:rows]:
        value = last_metric(trial, view.metric)
        steps = f"{trial.step}/{planned_steps(trial)}"
        last = "-" if value is None else score(value)
        table.add_row(str(trial.number), steps, last, Text(_point(view, trial)))
    hidden = len(progress.running) - rows
    return Group(table, _line((f"and {hidden} more running", "dim"))) if hidden > 0 else table
