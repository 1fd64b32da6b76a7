"""A director and a host whose trials follow a script in their names; neither trains anything."""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from replora.config import RunConfig
from replora.train.events import Checkpointed, Event, Failed, Finished, Reported
from replora.train.heap import heap_here
from sweeps.gang import GangError
from sweeps.ray_backend.contract import Task
from sweeps.retries import Limits

REPORT_EVERY = 5
_LENGTHS = {"slow": 400.0, "endless": float("inf")}


@dataclass(frozen=True)
class ScriptedTask:
    fingerprint: str
    config: RunConfig
    folder: Path
    attempt: int
    recorded: int = 0
    alone: bool = False
    micro_batch: int | None = None


class ScriptedDirector:
    """Hands out the named trials in order, records every call, and starts lost trials again.

    Names that begin with `prune` are stopped at their first report.
    """

    def __init__(self, folder: Path, names: Sequence[str], *, attempts: int = 3) -> None:
        self.folder = folder
        self.queue = deque(names)
        self.active: set[str] = set()
        self.attempts = dict.fromkeys(names, 0)
        self.allowed = attempts
        self.hosts: dict[str, list[str]] = {name: [] for name in names}
        self.events: list[Event] = []
        self.batches: list[list[Event]] = []
        self.most_active = 0
        self.on_event: Callable[[Event], None] = lambda event: None

    @property
    def done(self) -> bool:
        return not (self.queue or self.active)

    @property
    def judges(self) -> bool:
        return True

    @property
    def limits(self) -> Limits:
        return Limits(None, {})

    def ask(self, *, empty: bool = True) -> ScriptedTask | None:
        if not self.queue:
            return None
        name = self.queue.popleft()
        self.active.add(name)
        self.most_active = max(self.most_active, len(self.active))
        self.attempts[name] += 1
        return ScriptedTask(name, RunConfig(), self.folder / name, self.attempts[name])

    def started_all(self, host: str, trials: Mapping[str, str]) -> None:
        assert set(trials.values()) == {"scripted-data"}
        for trial in trials:
            self.hosts[trial].append(host)

    def handle_all(self, events: Sequence[Event], attempts: Mapping[str, int] | None = None) -> set[str]:
        self.batches.append(list(events))
        stops: set[str] = set()
        for event in events:
            if event.trial in stops:
                continue  # the same batch still holds what came after the report that stopped it
            assert event.trial in self.active, f"{event} of a trial that does not run"
            assert attempts is not None
            assert attempts[event.trial] == self.attempts[event.trial]
            self.events.append(event)
            self.on_event(event)
            if isinstance(event, Finished):
                self.active.discard(event.trial)
            elif isinstance(event, Failed):
                self.active.discard(event.trial)
                if event.kind != "diverged" and self.attempts[event.trial] < self.allowed:
                    self.queue.append(event.trial)
            elif isinstance(event, Reported) and event.trial.startswith("prune"):
                self.active.discard(event.trial)
                stops.add(event.trial)
        return stops

    def of(self, trial: str) -> list[Event]:
        return [event for event in self.events if event.trial == trial]

    def ended(self, kind: type[Event]) -> set[str]:
        return {event.trial for event in self.events if isinstance(event, kind)}


@dataclass
class _Trial:
    task: Task
    step: int


@dataclass
class ScriptedTrainer:
    """Trials end after 20 steps, unless their names begin with what else they do.

    `slow` takes 400 steps, `endless` never ends; `kill` ends the process at step 12 of its first attempt,
    `kill-always` of every attempt; `lame` ends rank 1 of a gang likewise, `hungry` makes it run out of
    memory; `diverge` fails at step 8; `nan` reports NaN; `bare` reports no metric at all; `break` ends the
    host's loop with an exception at step 12 of its first attempt.
    """

    slots: int
    threads: int
    device: str
    running: dict[str, _Trial] = field(default_factory=dict)

    @property
    def busy(self) -> bool:
        return bool(self.running)

    def admit(self, task: Task) -> str | None:
        assert len(self.running) < self.slots, "a trial was admitted without a free slot"
        task.folder.mkdir(parents=True, exist_ok=True)
        saved = task.folder / "step"
        self.running[task.fingerprint] = _Trial(task, int(saved.read_text()) if saved.exists() else 0)
        return "scripted-data"

    def withdraw(self, trial: str) -> None:
        self.running.pop(trial, None)

    def checkpoint(self) -> list[Event]:
        return [self._save(trial) for trial in self.running.values()]

    def step(self) -> list[Event]:
        time.sleep(0.004)
        return [event for trial in list(self.running.values()) for event in self._step(trial)]

    def _step(self, trial: _Trial) -> list[Event]:
        trial.step += 1
        name, first = trial.task.fingerprint, trial.task.attempt == 1
        if trial.step == 12 and (name.startswith("kill-always") or (name.startswith("kill") and first)):
            os.kill(os.getpid(), signal.SIGKILL)
        if trial.step == 12 and name.startswith("lame") and first and os.environ.get("RANK") == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        if trial.step == 12 and name.startswith("hungry") and first:
            if os.environ.get("RANK") == "1":
                raise GangError([Failed(name, trial.step, "out-of-memory", "rank 1 of 2: no memory")])
            time.sleep(60)  # in a collective
        if trial.step == 12 and name.startswith("break") and first:
            raise RuntimeError("scripted to break the loop")
        if trial.step == 8 and name.startswith("diverge"):
            del self.running[name]
            return [Failed(name, trial.step, "diverged", "training loss became nan")]
        events: list[Event] = []
        if trial.step % REPORT_EVERY == 0:
            events += [Reported(name, trial.step, self._metrics(name)), self._save(trial)]
        if trial.step >= _LENGTHS.get(name.partition("-")[0], 20):
            del self.running[name]
            events.append(Finished(name, trial.step, self._metrics(name), str(trial.task.folder / "adapter")))
        return events

    def _metrics(self, name: str) -> dict[str, float]:
        if name.startswith("bare"):
            return {}
        value = float("nan") if name.startswith("nan") else 0.5
        host = {"omp": float(os.environ["OMP_NUM_THREADS"]), "jemalloc": float(heap_here() == "jemalloc")}
        return {"accuracy": value, "pid": float(os.getpid()), **host}

    def _save(self, trial: _Trial) -> Checkpointed:
        (trial.task.folder / "step").write_text(str(trial.step))
        return Checkpointed(trial.task.fingerprint, trial.step, str(trial.task.folder / "step"))
