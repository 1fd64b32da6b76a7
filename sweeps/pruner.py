"""Who stops trials early: asynchronous successive halving, the median rule, or nobody.

A pruner judges the objective at equal numbers of optimizer steps. It keeps nothing that the ledger
does not hold, so feeding it the recorded reports in their order gives it back after a crash.
"""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np

from sweeps.config import PrunerConfig

__all__ = ["Asha", "Median", "NoPruner", "Pruner", "make_pruner", "rungs"]

Direction = Literal["maximize", "minimize"]


class Pruner(Protocol):
    """Decides on reports, one by one, in the order in which they were recorded."""

    def stops(self, trial: str, step: int, value: float) -> str:
        """Why the trial should stop after this report, or the empty string; `value` is the objective."""
        ...


class NoPruner:
    """Lets every trial run to its end."""

    def stops(self, trial: str, step: int, value: float) -> str:
        """Always the empty string."""
        return ""


class Asha:
    """Asynchronous successive halving with one bracket [1].

    Rungs lie at `grace_steps * reduction ** k` steps. A trial that reaches a rung is compared with
    those that reached it before: it goes on if its value is in the best `1 / reduction` of theirs,
    measured by the linearly interpolated percentile. The first to arrive always goes on. These are
    the decisions of Ray Tune's `AsyncHyperBandScheduler(brackets=1)` on the same reports.

    Args:
        grace_steps: The first rung, in optimizer steps.
        reduction: Ratio of a rung to the one before, and of its arrivals to those that go on.
        direction: Of the objective.

    References:
        [1] Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020.
    """

    def __init__(self, grace_steps: int, reduction: int, direction: Direction) -> None:
        self._grace = grace_steps
        self._reduction = reduction
        self._sign = 1.0 if direction == "maximize" else -1.0
        self._rungs: dict[int, dict[str, float]] = {}

    def stops(self, trial: str, step: int, value: float) -> str:
        """The reason to stop, where the trial reaches a rung among the worse ones."""
        rung = self._reached(trial, step)
        if rung is None:
            return ""
        arrived = self._rungs.setdefault(rung, {})
        cutoff = self._cutoff(arrived)
        arrived[trial] = self._sign * value
        if cutoff is None or self._sign * value >= cutoff:
            return ""
        return f"below the best 1/{self._reduction} of {len(arrived) - 1} at rung {rung} (step {step})"

    def _reached(self, trial: str, step: int) -> int | None:
        """The highest rung at or below `step` where the trial was not counted yet."""
        rung, found = self._grace, None
        while rung <= step:
            if trial not in self._rungs.get(rung, {}):
                found = rung
            rung *= self._reduction
        return found

    def _cutoff(self, arrived: dict[str, float]) -> float | None:
        if not arrived:
            return None
        return float(np.percentile(list(arrived.values()), (1 - 1 / self._reduction) * 100))


class Median:
    """Stops a trial whose value is worse than the median of the others' at the same step.

    Args:
        grace_steps: No trial stops before so many steps.
        direction: Of the objective.
        others: Trials that must have reported at the step before it is judged there (a *choice*).
    """

    def __init__(self, grace_steps: int, direction: Direction, others: int = 4) -> None:
        self._grace = grace_steps
        self._others = others
        self._sign = 1.0 if direction == "maximize" else -1.0
        self._values: dict[int, dict[str, float]] = {}

    def stops(self, trial: str, step: int, value: float) -> str:
        """The reason to stop, where enough others have reported at this step and half did better."""
        values = self._values.setdefault(step, {})
        others = [seen for name, seen in values.items() if name != trial]
        values[trial] = self._sign * value
        if step < self._grace or len(others) < self._others or self._sign * value >= np.median(others):
            return ""
        return f"worse than the median of {len(others)} others at step {step}"


def make_pruner(config: PrunerConfig, direction: Direction) -> Pruner:
    """The configured pruner, having seen nothing."""
    if config.name == "asha":
        return Asha(config.grace_steps, config.reduction, direction)
    if config.name == "median":
        return Median(config.grace_steps, direction)
    return NoPruner()


def rungs(config: PrunerConfig, steps: int) -> tuple[int, ...]:
    """ASHA's rungs before the end of a training of `steps` optimizer steps."""
    found, rung = [], config.grace_steps
    while rung < steps:
        found.append(rung)
        rung *= config.reduction
    return tuple(found)
