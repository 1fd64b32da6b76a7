"""A host that trains nothing: objectives by formula, so that a whole sweep takes milliseconds."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from replora.config import RunConfig
from replora.train.events import Checkpointed, Event, Failed, Finished, Reported
from sweeps.config import SweepConfig
from sweeps.continuing import sweep_fingerprint
from sweeps.director import Director, TrialTask
from sweeps.ledger import LEDGER_NAME, Ledger, SweepView, read_ledger
from sweeps.objective import objectives_of

EVERY = 50
#: Lines that a driver did not write although its hosts had got so far: two reports, two checkpoints.
AHEAD = 4

Score = Callable[[RunConfig, int], float]


def sweep(**changes: Any) -> SweepConfig:
    """Optuna over learning rate and rank with ASHA and two confirmed configurations, unless changed."""
    base: dict[str, Any] = {
        "name": "simulated",
        "space": {"optim.lr": {"log_uniform": (1e-4, 1e-1)}, "method.rank": {"integers": (2, 16)}},
        "search": {"name": "optuna", "trials": 20},
        "pruner": {"name": "asha", "grace_steps": 50, "reduction": 3},
        "confirm": {"top": 2, "seeds": (1, 2)},
    }
    return SweepConfig.model_validate({**base, **changes})


def grid(**changes: Any) -> SweepConfig:
    """Three learning rates by two decays, no pruner, no confirmation, unless changed."""
    space = {"optim.lr": {"values": (1e-3, 1e-2, 1e-1)}, "optim.weight_decay": {"values": (1e-4, 1e-2)}}
    return sweep(**{"space": space, "search": {}, "pruner": {}, "confirm": {}, **changes})


def score(config: RunConfig, step: int) -> float:
    """Best at lr 0.01 and a small rank; grows with the steps; seeds differ a little."""
    rank = getattr(config.method, "rank", 8)
    miss = abs(math.log10(config.optim.lr) + 2) / 3 + rank / 400
    return 0.99 - miss - 0.1 * (1 - step / config.train.steps) + 0.001 * (config.seed % 3)


def begin(folder: Path, config: SweepConfig) -> Ledger:
    """The folder's ledger, with its first line."""
    ledger = Ledger.open(folder)
    if not ledger.size:
        objectives = objectives_of(config)
        ledger.append(
            "sweep",
            sweep=sweep_fingerprint(config),
            name=config.name,
            versions={},
            git="",
            metric=objectives[0].metric,
            direction=objectives[0].direction,
            objectives=[asdict(objective) for objective in objectives],
            config=config.model_dump(mode="json"),
        )
    return ledger


class SimulatedHost:
    """Reports and checkpoints at every 50 steps.

    Args:
        slots: Trials at once.
        score: The objective.
        faults: Fails the step that follows the n-th admission (from 1), once.
        saved: Checkpoints of an earlier process: step by trial. They carry the reports before them.
    """

    data = "sha256:data"

    def __init__(
        self,
        slots: int,
        score: Score = score,
        faults: Mapping[int, Failed] | None = None,
        saved: Mapping[str, int] | None = None,
    ) -> None:
        self.slots = slots
        self.admitted: list[tuple[str, int]] = []
        self._score = score
        self._faults = dict(faults or {})
        self._running: dict[str, tuple[TrialTask, int]] = {}
        self._saved = dict(saved or {})
        self._untold: list[Event] = []

    @property
    def free(self) -> int:
        return self.slots - len(self._running)

    @property
    def busy(self) -> bool:
        return bool(self._running)

    @property
    def trials(self) -> tuple[str, ...]:
        return tuple(self._running)

    def admit(self, task: Any) -> str | None:
        step = self._saved.get(task.fingerprint, 0)
        self.admitted.append((task.fingerprint, step))
        self._running[task.fingerprint] = (task, step)
        for at in range(EVERY, step + 1, EVERY):
            if at > task.recorded:
                self._untold.append(Reported(task.fingerprint, at, self._metrics(task, at)))
        return self.data

    def withdraw(self, trial: str) -> None:
        self._running.pop(trial, None)

    def step(self) -> list[Event]:
        events, self._untold = self._untold, []
        for trial, (task, before) in list(self._running.items()):
            events += self._advance(trial, task, before + EVERY)
        return events

    def checkpoint(self) -> list[Event]:
        return [Checkpointed(trial, step, "") for trial, (_, step) in self._running.items()]

    def _advance(self, trial: str, task: TrialTask, step: int) -> list[Event]:
        fault = self._faults.pop(len(self.admitted), None)
        if fault is not None:
            self.withdraw(trial)
            return [Failed(trial, step, fault.kind, fault.reason)]
        metrics = self._metrics(task, step)
        self._running[trial] = (task, step)
        self._saved[trial] = step
        events: list[Event] = [Reported(trial, step, metrics)]
        if step < task.config.train.steps:
            return [*events, Checkpointed(trial, step, str(task.folder / f"{step}"))]
        self.withdraw(trial)
        return [*events, Finished(trial, step, metrics, str(task.folder / "adapter"))]

    def _metrics(self, task: TrialTask, step: int) -> dict[str, float]:
        return {"accuracy": self._score(task.config, step), "val_loss": 1.0}


def run(folder: Path, config: SweepConfig, host: SimulatedHost | None = None) -> Director:
    """The director after the whole sweep has run in simulation, from the start or from where it stopped."""
    from sweeps.backend import drive

    with begin(folder, config) as ledger:
        director = Director(config, ledger)
        drive(director, host or SimulatedHost(3), lambda: None)
        return director


def checkpoints(lines: Iterable[bytes]) -> dict[str, int]:
    """Steps of the newest checkpoints that these lines tell of."""
    known = [json.loads(line) for line in lines]
    return {line["trial"]: line["step"] for line in known if line["event"] == "checkpointed"}


def outcomes(view: SweepView) -> list[tuple[Any, ...]]:
    """What a sweep came to, trial by trial."""
    return [
        (t.number, t.stage, t.seed, t.state, t.point, t.objective, t.parent) for t in view.trials.values()
    ]


def cut_and_compare(
    folder: Path,
    config: SweepConfig,
    make_host: Callable[[Mapping[str, int]], SimulatedHost] = lambda saved: SimulatedHost(1, saved=saved),
    *,
    every: int = 1,
) -> SweepView:
    """The undisturbed sweep, after it was compared with sweeps that were cut and gone on with.

    The hosts of every third one were ahead of the driver: their newest checkpoints, and the reports before
    them, are not in what is left of the ledger.

    Args:
        folder: An empty one.
        config: The sweep.
        make_host: Makes a host that has the given checkpoints.
        every: Cuts after each so many lines, whole and in the middle of a line by turns.
    """
    view = run(folder / "whole", config, make_host({})).view
    expected = outcomes(view)
    lines = (folder / "whole" / LEDGER_NAME).read_bytes().splitlines(keepends=True)
    for count in range(1, len(lines), every):
        cut = folder / "cut"
        shutil.rmtree(cut, ignore_errors=True)
        cut.mkdir()
        torn = lines[count][: len(lines[count]) // 2] if count // every % 2 else b""
        (cut / LEDGER_NAME).write_bytes(b"".join(lines[:count]) + torn)
        ended = {name for name, t in read_ledger(cut).trials.items() if t.ended}
        host = make_host(checkpoints(lines[: count + (AHEAD if count // every % 3 == 0 else 0)]))
        assert outcomes(run(cut, config, host).view) == expected, f"cut after line {count}"
        assert not ended & {name for name, _ in host.admitted}, f"cut after line {count}"
    return view
