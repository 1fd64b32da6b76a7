"""Every decision and every record of a sweep; knows nothing of Ray, of processes or of torch.

The director is a fold over the ledger: what happens is first recorded, then taken in by `_take`, and
a director built on an old ledger takes in the same lines in the same order. So after a crash it, its
agenda and its pruner are what they were.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from replora.config import RunConfig
from replora.errors import DataError
from replora.train.adopt import adopt_checkpoints
from replora.train.events import Checkpointed, Event, Failed, Finished, Reported
from sweeps.agenda import Agenda
from sweeps.config import SweepConfig
from sweeps.ledger import Entry, Ledger, Line, SweepView, TrialView
from sweeps.lines import understood
from sweeps.objective import QUANTITIES, parameters_of, with_quantities
from sweeps.pruner import make_pruner
from sweeps.retries import Limits, Retries

__all__ = ["Director", "TrialTask"]

TRIALS_NAME = "trials"


@dataclass(frozen=True)
class TrialTask:
    """A trial to run, for a backend.

    Attributes:
        folder: Where its checkpoints and its adapter lie; a host resumes from the newest good checkpoint.
        attempt: How often it was started, this time included; events of older attempts do not count.
        recorded: Step of the last report in the ledger; a checkpoint may carry later ones, whose process
            died before they were recorded.
        alone: No other trial may be on its host: it is suspected of ending hosts or spoiling packs.
        micro_batch: Examples per forward pass, where memory allows fewer than configured.
    """

    fingerprint: str
    config: RunConfig
    folder: Path
    attempt: int
    recorded: int = 0
    alone: bool = False
    micro_batch: int | None = None


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
        self._retries = Retries(config.max_failures, self.view.trials)
        self._started: dict[str, float] = {}
        self._halts: dict[str, str | None] = {}  # why a trial must stop; None: it waits for its population
        self._queue: deque[str] = deque()
        self._suspects: deque[str] = deque()
        self._active: set[str] = set()
        self._attempts: Counter[str] = Counter()
        self._rebuild()

    # --- what backends call ---------------------------------------------------------------------

    @property
    def done(self) -> bool:
        """Nothing runs and nothing is left to ask."""
        return not (self._active or self._queue or self._suspects or self._agenda.left)

    @property
    def judges(self) -> bool:
        """Whether a report may stop its trial."""
        return self._config.pruner.name != "none" or self._config.search.name == "pbt"

    @property
    def limits(self) -> Limits:
        """What memory was found to allow; no host may train more trials at once than its `width`."""
        return self._retries.limits

    def ask(self, *, empty: bool = True) -> TrialTask | None:
        """The next trial to run, recorded as asked; None: nothing to start now (look at `done`).

        Args:
            empty: A host without any trial is there, so that one which must run alone can be asked for;
                those come when nothing else is left.
        """
        while not self._queue and self._agenda.left:
            entries = self._agenda.propose(running=bool(self._active))
            if not entries:
                break
            self._record(entries)
        waiting = self._queue or (self._suspects if empty else None)
        if not waiting:
            return None
        trial = waiting.popleft()
        self._active.add(trial)
        self._attempts[trial] += 1
        return self._task(trial)

    def _task(self, trial: str) -> TrialTask:
        config = RunConfig.model_validate(self.view.trials[trial].config)
        config = config.model_copy(update={"engine": self._config.run.engine})  # may differ after a resume
        folder, recorded = self._trial_folder(trial), _last_report(self.view.trials[trial])
        alone, micro_batch = self._retries.is_suspect(trial), self._retries.micro_batch(config)
        return TrialTask(trial, config, folder, self._attempts[trial], recorded, alone, micro_batch)

    def started(self, trial: str, host: str, data: str = "") -> None:
        """Records that a host has given a slot to a trial that `ask` handed out, as `started_all` does."""
        self.started_all(host, {trial: data})

    def started_all(self, host: str, trials: Mapping[str, str]) -> None:
        """Records the trials that a host has given a slot to, with one flush to disk.

        Args:
            host: Its name, for people.
            trials: Their fingerprints, each with the task's `data_hash` on that host; empty where it is not
                known.

        Raises:
            DataError: If the host reads other data than the hosts before it.
        """
        known = "" if self.view.data_open else self.view.data
        for data in filter(None, trials.values()):
            known = known or data
            if data != known:
                raise DataError(
                    f"the data of task {self._config.run.task.name} on host {host} is not what this sweep "
                    f"began with: {data} instead of {known}.\n"
                    f"  Put the data back, or start a new sweep. To go on all the same, knowing that trials "
                    f"then saw different data: replora resume {self._folder} --accept-changes"
                )
        self._record(
            [
                Entry("started", trial, {"host": host, "attempt": self._attempts[trial], **_data(data)})
                for trial, data in trials.items()
                if trial in self._active
            ]
        )

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
        stops: set[str] = set()
        for part in self._parts(events):
            stops |= self._handle(part, attempts or {})
        return stops

    def _parts(self, events: Sequence[Event]) -> Iterator[Sequence[Event]]:
        """The events, cut where a trial reports again that its report before may stop."""
        begin, reported = 0, set[str]()
        for index, event in enumerate(events if self.judges else ()):
            if isinstance(event, Reported) and event.trial in reported:
                yield events[begin:index]
                begin, reported = index, set()
            reported |= {event.trial} if isinstance(event, Reported) else set()
        yield events[begin:]

    def _handle(self, events: Sequence[Event], known: Mapping[str, int]) -> set[str]:
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
        return stops | self._halt()

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
            return [self._failure(event)]
        event = self._completed(event)
        fault = self._fault(event)
        if isinstance(event, Finished):
            return [self._failure(fault) if fault else self._finish(event)]
        if self._reported(trial, event.step):
            return []  # a restarted trial repeats the steps since its checkpoint
        report = Entry("reported", trial, {"step": event.step, "metrics": dict(event.metrics)})
        return [report, self._failure(fault)] if fault else [report]

    def _fault(self, event: Reported | Finished) -> Failed | None:
        """The failure of a trial of which an objective is missing or not a number."""
        for metric in (objective.metric for objective in self.view.objectives):
            value = event.metrics.get(metric)
            if value is None:
                names = ", ".join(sorted(event.metrics)) or "none"
                reason = f"step {event.step} has no metric {metric} (metrics: {names})"
                return Failed(event.trial, event.step, "error", reason)
            if not math.isfinite(value):
                return Failed(
                    event.trial, event.step, "diverged", f"{metric} is {value} at step {event.step}"
                )
        return None

    def _completed(self, event: Reported | Finished) -> Reported | Finished:
        """The event with the quantities of the trial that some objective names."""
        if not any(objective.metric in QUANTITIES for objective in self.view.objectives):
            return event
        run = RunConfig.model_validate(self.view.trials[event.trial].config)
        metrics = with_quantities(event.metrics, self.view.objectives, parameters_of(run))
        return replace(event, metrics=metrics)

    def _finish(self, event: Finished) -> Entry:
        fields = {
            "step": event.step,
            "metrics": dict(event.metrics),
            "objective": event.metrics[self.objective.metric],
            "adapter": self._relative(event.adapter),
            "seconds": round(time.time() - self._started.get(event.trial, time.time()), 3),
        }
        return Entry("finished", event.trial, fields)

    def _failure(self, event: Failed) -> Entry:
        return Entry("failed", event.trial, self._retries.verdict(event))

    def _reported(self, trial: str, step: int) -> bool:
        return _last_report(self.view.trials[trial]) >= step

    def _halt(self) -> set[str]:
        """Records the stops that the pruner asked for, and who waits for the rest of its population."""
        halted = {trial for trial in self._halts if trial in self._active}
        self._record([self._halted(self.view.trials[trial]) for trial in sorted(halted)])
        return halted

    def _halted(self, trial: TrialView) -> Entry:
        step, metrics = trial.reports[-1]
        reason = self._halts[trial.fingerprint]
        if reason is None:
            return Entry("paused", trial.fingerprint, {"step": step})
        fields = {"step": step, "objective": metrics[self.objective.metric], "reason": reason}
        return Entry("pruned", trial.fingerprint, fields)

    def _relative(self, path: str) -> str:
        inside = Path(path).is_relative_to(self._folder)
        return str(Path(path).relative_to(self._folder)) if inside else path

    # --- the fold -------------------------------------------------------------------------------

    def _record(self, entries: Sequence[Entry]) -> None:
        if not entries:
            return
        for line in self._ledger.append_all(entries):
            self._take(line)
            event = line["event"]
            if event in ("asked", "continued") or (event == "failed" and not line["final"]):
                self._active.discard(line["trial"])
                self._wait(line["trial"])
            if event == "asked":
                self._inherit(line["trial"])
        self._follow_up()

    def _follow_up(self) -> None:
        """Asks for what the end of everything so far decides."""
        if not (self._active or self._queue or self._suspects):
            self._record(self._agenda.follow_up())

    def _wait(self, trial: str) -> None:
        (self._suspects if self._retries.is_suspect(trial) else self._queue).append(trial)

    def _inherit(self, trial: str) -> None:
        """Gives a copy its parent's checkpoints, before the parent goes on and replaces them."""
        view = self.view.trials[trial]
        if view.parent:
            source, target = (self._trial_folder(name) / "checkpoints" for name in (view.parent, trial))
            adopt_checkpoints(source, target, trial, view.parent_step)

    def _trial_folder(self, trial: str) -> Path:
        return self._folder / TRIALS_NAME / trial

    def _rebuild(self) -> None:
        """Takes in an old ledger, and finishes what a crash has cut in two."""
        lines = self._ledger.lines()
        with understood("line 1"):
            self.view.apply(next(lines))
            self.objective = self.view.objectives[0]
            self._agenda = Agenda(self._config, self.view)
            self._pruner = make_pruner(self._config.pruner, self.objective.direction)
        for line in lines:
            with understood(f"line {self.view.size + 1}"):
                self._take(line, recalled=True)
        with understood("the end"):
            self._go_on()

    def _go_on(self) -> None:
        self._attempts.update({name: trial.attempts for name, trial in self.view.trials.items()})
        self._active = {name for name, trial in self.view.trials.items() if not trial.ended}
        self._record(self._agenda.begin())
        self._halt()
        self._active, self._queue = set(), deque()
        for name, trial in self.view.trials.items():
            if not trial.ended:
                self._inherit(name)
                if trial.state != "paused":
                    self._wait(name)
        self._follow_up()

    def _take(self, line: Line, *, recalled: bool = False) -> None:
        """Takes in a line that is on disk: the same for a line of now and of an earlier process."""
        self.view.apply(line)
        event, trial = line["event"], line["trial"]
        if event == "started":
            self._started[trial] = line["time"]
        elif event == "reported":
            self._judge(self.view.trials[trial])
        elif event == "limited" or (event == "failed" and not line["final"]):
            self._retries.take(line)
        elif event in ("finished", "pruned", "paused", "failed"):
            self._active.discard(trial)
            self._halts.pop(trial, None)
        self._agenda.take(line, recalled=recalled)

    def _judge(self, trial: TrialView) -> None:
        """Lets the population and the pruner see a report of the search; the last step needs no decision."""
        value = trial.metrics.get(self.objective.metric, math.nan)
        last = trial.step >= trial.config["train"]["steps"]
        if trial.stage != "search" or not math.isfinite(value) or last:
            return
        if self._agenda.pauses(trial):
            self._halts[trial.fingerprint] = None
        elif reason := self._pruner.stops(trial.fingerprint, trial.step, value):
            self._halts[trial.fingerprint] = reason


def _data(found: str) -> dict[str, str]:
    return {"data": found} if found else {}


def _last_report(trial: TrialView) -> int:
    """Step of a trial's last report; what a copy shares with its parent was reported by the parent."""
    return trial.reports[-1][0] if trial.reports else trial.parent_step
