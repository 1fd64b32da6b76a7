"""Every decision and every record of a sweep; knows nothing of Ray, of processes or of torch.

The director is a fold over the ledger: what happens is first recorded, then taken in by `_take`, and
a director built on an old ledger takes in the same lines in the same order. So after a crash it, its
searcher and its pruner are what they were.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from replora.config import RunConfig
from replora.errors import ConfigError, DataError
from replora.fingerprint import fingerprint
from replora.load import run_from
from replora.train.events import Checkpointed, Event, Failed, Finished, Reported
from sweeps.config import SweepConfig
from sweeps.groups import points_to_confirm
from sweeps.ledger import Entry, Ledger, Line, SweepView, TrialView
from sweeps.objective import Objective
from sweeps.proposals import Proposals
from sweeps.pruner import make_pruner
from sweeps.search import make_searcher
from sweeps.space import Point

__all__ = ["Director", "TrialTask"]

TRIALS_NAME = "trials"


@dataclass(frozen=True)
class TrialTask:
    """A trial to run, for a backend.

    Attributes:
        folder: Where its checkpoints and its adapter lie; a host resumes from the newest good checkpoint.
        attempt: How often it was started, this time included; events of older attempts do not count.
        step: Optimizer steps of which the ledger knows: a later checkpoint, whose reports were lost with
            the process that wrote it, is not gone on from.
    """

    fingerprint: str
    config: RunConfig
    folder: Path
    attempt: int
    step: int = 0


class Director:
    """Drives one sweep; backends call it from one thread.

    Args:
        config: The sweep, checked by `sweeps.check`.
        ledger: Its ledger, which holds at least the `sweep` line.
    """

    def __init__(self, config: SweepConfig, ledger: Ledger) -> None:
        self.view = SweepView()
        self._config = config
        self._ledger = ledger
        self._folder = ledger.path.parent
        self._failures: Counter[str] = Counter()
        self._started: dict[str, float] = {}
        self._stops: dict[str, str] = {}
        self._queue: deque[str] = deque()
        self._active: set[str] = set()
        self._attempts: Counter[str] = Counter()
        self._rebuild()

    # --- what backends call ---------------------------------------------------------------------

    @property
    def done(self) -> bool:
        """Nothing runs and nothing is left to ask."""
        return not (self._active or self._queue or self._proposals.left)

    def ask(self) -> TrialTask | None:
        """The next trial to run, recorded as asked; None: nothing to start now (look at `done`)."""
        while not self._queue and self._proposals.left:
            self._propose()
        if not self._queue:
            return None
        trial = self._queue.popleft()
        self._active.add(trial)
        self._attempts[trial] += 1
        view = self.view.trials[trial]
        config = RunConfig.model_validate(view.config)
        folder = self._folder / TRIALS_NAME / trial
        return TrialTask(trial, config, folder, self._attempts[trial], view.step)

    def started(self, trial: str, host: str, data: str = "") -> None:
        """Records that a host has given a slot to a trial that `ask` handed out.

        Args:
            trial: Its fingerprint.
            host: Name of the host, for people.
            data: The task's `data_hash` on that host, where it is known.

        Raises:
            DataError: If the host reads other data than the hosts before it.
        """
        if data and self.view.data and not self.view.data_open and data != self.view.data:
            raise DataError(
                f"the data of task {self._config.run.task.name} on host {host} is not what this sweep began "
                f"with: {data} instead of {self.view.data}.\n"
                f"  Put the data back, or start a new sweep. To go on all the same, knowing that trials then "
                f"saw different data: replora resume {self._folder} --accept-changes"
            )
        if trial in self._active:
            fields = {"host": host, "attempt": self._attempts[trial]} | ({"data": data} if data else {})
            self._record([Entry("started", trial, fields)])

    def handle(self, event: Event, attempt: int | None = None) -> bool:
        """Records one event; True: this trial must stop (it was pruned, or the event came from the past).

        Args:
            event: Of a host.
            attempt: That of the `TrialTask` which the host trains; None: it cannot be an older one.
        """
        return bool(self.handle_all([event], {} if attempt is None else {event.trial: attempt}))

    def handle_all(self, events: Sequence[Event], attempts: Mapping[str, int] | None = None) -> set[str]:
        """Records many events with one flush to disk.

        Args:
            events: Of any trials, in the order in which they happened.
            attempts: Those of the `TrialTask`s that the host trains, by trial.

        Returns:
            The trials that must stop; what has ended by itself is not among them.
        """
        known = attempts or {}
        entries: list[Entry] = []
        ended: set[str] = set()
        stops: set[str] = set()
        for event in events:
            trial, running = event.trial, isinstance(event, Reported | Checkpointed)
            if trial in ended or not self._counts(trial, known.get(trial)):
                stops |= {trial} if running else set()
                continue
            made = self._entries(event)
            entries += made
            if made and made[-1].event in ("finished", "failed"):
                ended.add(trial)
                stops |= {trial} if running else set()
        self._record(entries)
        return stops | self._prune()

    def sampled(self, values: Mapping[str, float]) -> None:
        """Records how busy the machine is (`sweeps.machine`)."""
        self._record([Entry("machine", None, {"values": dict(values)})])

    def _counts(self, trial: str, attempt: int | None) -> bool:
        return trial in self._active and attempt in (None, self._attempts[trial])

    def close(self) -> None:
        """Records that nothing is left to do, and whether any trial was trained to its end."""
        finished = any(trial.state == "finished" for trial in self.view.trials.values())
        self._record([Entry("closed", None, {"state": "done" if finished else "failed"})])

    # --- from events to lines -------------------------------------------------------------------

    def _entries(self, event: Event) -> list[Entry]:
        trial = event.trial
        if isinstance(event, Checkpointed):
            fields = {"step": event.step, "path": self._relative(event.path)}
            return [Entry("checkpointed", trial, fields)]
        if isinstance(event, Failed):
            return [self._failure(trial, event.step, event.kind, event.reason)]
        fault = self._fault(event)
        if isinstance(event, Finished):
            return [self._failure(trial, event.step, *fault) if fault else self._finish(event)]
        if self._reported(trial, event.step):
            return []  # a restarted trial repeats the steps since its checkpoint
        report = Entry("reported", trial, {"step": event.step, "metrics": dict(event.metrics)})
        return [report, self._failure(trial, event.step, *fault)] if fault else [report]

    def _fault(self, event: Reported | Finished) -> tuple[str, str] | None:
        """Kind and reason where the objective is missing or not a number."""
        value = event.metrics.get(self.objective.metric)
        if value is None:
            names = ", ".join(sorted(event.metrics)) or "none"
            return "error", f"step {event.step} has no metric {self.objective.metric} (metrics: {names})"
        if not math.isfinite(value):
            return "diverged", f"{self.objective.metric} is {value} at step {event.step}"
        return None

    def _finish(self, event: Finished) -> Entry:
        fields = {
            "step": event.step,
            "metrics": dict(event.metrics),
            "objective": event.metrics[self.objective.metric],
            "adapter": self._relative(event.adapter),
            "seconds": round(time.time() - self._started.get(event.trial, time.time()), 3),
        }
        return Entry("finished", event.trial, fields)

    def _failure(self, trial: str, step: int, kind: str, reason: str) -> Entry:
        final = kind == "diverged" or self._failures[trial] >= self._config.max_failures
        return Entry("failed", trial, {"step": step, "kind": kind, "reason": reason, "final": final})

    def _reported(self, trial: str, step: int) -> bool:
        reports = self.view.trials[trial].reports
        return bool(reports) and reports[-1][0] >= step

    def _prune(self) -> set[str]:
        """Records the stops that the pruner asked for."""
        stops = {trial for trial in self._stops if trial in self._active}
        entries = []
        for trial in sorted(stops):
            view = self.view.trials[trial]
            step, metrics = view.reports[-1]
            fields = {"step": step, "objective": metrics[self.objective.metric], "reason": self._stops[trial]}
            entries.append(Entry("pruned", trial, fields))
        self._record(entries)
        return stops

    def _relative(self, path: str) -> str:
        inside = Path(path).is_relative_to(self._folder)
        return str(Path(path).relative_to(self._folder)) if inside else path

    # --- what to run next -----------------------------------------------------------------------

    def _propose(self) -> None:
        """Asks the searcher once; its point becomes trials, or is set aside at once."""
        number, point = self._proposals.ask()
        try:
            runs = self._runs(point, self._config.seeds)
        except ConfigError as error:
            self._skip(number, point, f"invalid: {error}", [])
            return
        known = [trial for trial in runs if trial in self.view.trials]
        if known:
            self._skip(number, point, f"the same run as trial {known[0]}", known)
        else:
            self._record(self._asked(point, runs, stage="search", proposal=number))

    def _skip(self, number: int, point: Point, reason: str, same_as: list[str]) -> None:
        fields = {"proposal": number, "point": point, "reason": reason, "same_as": same_as}
        self._record([Entry("skipped", None, fields)])

    def _runs(self, point: Point, seeds: Iterable[int]) -> dict[str, RunConfig]:
        runs = [run_from(self._config.run, {**point, "seed": seed}) for seed in seeds]
        return {fingerprint(run): run for run in runs}

    def _asked(self, point: Point, runs: Mapping[str, RunConfig], **fields: Any) -> list[Entry]:
        """Lines that ask for runs of one point; `number` is that of the first."""
        first = fields.pop("number", len(self.view.trials))
        entries = []
        for number, (trial, run) in enumerate(runs.items(), first):
            config = {"point": point, "config": run.model_dump(mode="json"), "seed": run.seed}
            entries.append(Entry("asked", trial, {**config, **fields, "number": number}))
        return entries

    def _confirm(self) -> None:
        """Once the search is over, asks for the best configurations with the fresh seeds, once."""
        if self._active or self._queue or self._proposals.left:
            return
        entries: list[Entry] = []
        for point in points_to_confirm(self.view, self._config.confirm.top):
            runs = self._runs(point, self._config.confirm.seeds)
            new = {trial: run for trial, run in runs.items() if trial not in self.view.trials}
            number = len(self.view.trials) + len(entries)
            entries += self._asked(point, new, stage="confirm", proposal=None, number=number)
        self._record(entries)

    # --- the fold -------------------------------------------------------------------------------

    def _record(self, entries: Sequence[Entry]) -> None:
        if not entries:
            return
        for line in self._ledger.append_all(entries):
            self._take(line)
            if line["event"] == "asked" or (line["event"] == "failed" and not line["final"]):
                self._active.discard(line["trial"])
                self._queue.append(line["trial"])
        self._confirm()

    def _rebuild(self) -> None:
        """Takes in an old ledger, and finishes what a crash has cut in two."""
        lines = self._ledger.lines()
        self.view.apply(next(lines))
        self.objective = Objective(self.view.metric, self.view.direction)
        searcher = make_searcher(self._config, self.view.direction)
        self._proposals = Proposals(searcher, self.view.metric, self.view.trials)
        self._pruner = make_pruner(self._config.pruner, self.view.direction)
        for line in lines:
            self._take(line, recalled=True)
        self._attempts.update({name: trial.attempts for name, trial in self.view.trials.items()})
        self._active = {name for name, trial in self.view.trials.items() if not trial.ended}
        self._prune()
        self._queue = deque(name for name, trial in self.view.trials.items() if not trial.ended)
        self._active = set()
        self._complete()
        self._confirm()

    def _complete(self) -> None:
        """Asks for the seeds of the last proposal whose lines a crash has cut off."""
        last = self._proposals.last
        if last is None or not last.trials:
            return
        asked = {self.view.trials[trial].seed for trial in last.trials}
        runs = self._runs(last.point, [seed for seed in self._config.seeds if seed not in asked])
        self._record(self._asked(last.point, runs, stage="search", proposal=last.number))

    def _take(self, line: Line, *, recalled: bool = False) -> None:
        """Takes in a line that is on disk: the same for a line of now and of an earlier process."""
        self.view.apply(line)
        event, trial = line["event"], line["trial"]
        if event in ("asked", "skipped"):
            self._proposals.take(line, recalled=recalled)
        elif event == "started":
            self._started[trial] = line["time"]
        elif event == "reported":
            self._judge(self.view.trials[trial])
        elif event == "failed" and not line["final"]:
            self._failures[trial] += 1
        elif event in ("finished", "pruned", "failed"):
            self._active.discard(trial)
            self._stops.pop(trial, None)
            self._proposals.settle(trial)

    def _judge(self, trial: TrialView) -> None:
        """Lets the pruner see a report of the search; the last step needs no decision."""
        value = trial.metrics.get(self.objective.metric, math.nan)
        last = trial.step >= trial.config["train"]["steps"]
        if trial.stage == "search" and math.isfinite(value) and not last:
            reason = self._pruner.stops(trial.fingerprint, trial.step, value)
            if reason:
                self._stops[trial.fingerprint] = reason
