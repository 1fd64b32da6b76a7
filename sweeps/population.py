"""Population-based training [1]: at fixed steps the worst become copies of the best with other rates.

A copy is a trial of its own. Its run is the parent's with one more entry in `optim.phases`, so its
fingerprint names the whole history of its rates, and training that run from its start gives the copy
again: data order and random streams are functions of the seed and the step, which all members share.
Taking over the parent's checkpoint only saves those steps.

Every member waits at a decision step for all others. A decision is a function of the values at that
step, so neither the order of events nor a crash can change it.

References:
    [1] Jaderberg et al., "Population Based Training of Neural Networks", 2017 (truncation selection,
        perturbation; waiting for the whole population is a choice of this project).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from replora.config import OptimPhase, RunConfig
from replora.fingerprint import fingerprint
from replora.reading.faults import Fault
from sweeps.config import Scalar, SweepConfig
from sweeps.ledger import Entry, SweepView, TrialView
from sweeps.objective import Objective
from sweeps.space import Point

__all__ = ["RATES", "Population", "copies_planned", "population_faults"]

#: What a copy changes; everything else of a run decides the shapes that its parent's checkpoint has.
RATES = ("optim.lr", "optim.weight_decay")
_DRAWS = 8  # for a copy that differs from its parent and from the other copies (choice)


@dataclass(frozen=True)
class _Copy:
    """One replacement: the member's place, its parent, and the copy."""

    place: int
    parent: str
    run: RunConfig
    point: Point


class Population:
    """What becomes of a population at each decision.

    Args:
        config: The sweep.
        objective: What decides.
    """

    def __init__(self, config: SweepConfig, objective: Objective) -> None:
        self._config = config
        self._rules = config.search.population
        self._objective = objective

    def pauses(self, trial: TrialView) -> bool:
        """Whether a trial that has just reported waits here for the others."""
        begun = max(trial.parent_step, trial.paused_at)
        at_decision = trial.step % self._rules.every == 0 and begun < trial.step < _steps(trial)
        return trial.stage == "search" and at_decision

    def evolve(self, view: SweepView) -> list[Entry]:
        """What the newest decision that all members have reached still has to record; else nothing."""
        members: list[str] = [
            name for name, trial in view.trials.items() if trial.stage == "search" and not trial.parent
        ]
        if not members:
            return []
        steps = _steps(view.trials[members[0]])
        for step in range(self._rules.every, steps, self._rules.every):
            values = {
                place: _value(view.trials[name], step, self._objective) for place, name in enumerate(members)
            }
            there = {place: value for place, value in values.items() if value is not None}
            if any(not view.trials[name].ended for place, name in enumerate(members) if place not in there):
                return []  # somebody is still on the way to this decision
            copies = self._copies(view, members, there, step)
            entries = self._entries(view, members, copies, step)
            if entries:
                return entries
            for copy in copies:
                members[copy.place] = fingerprint(copy.run)
        return []

    def _copies(
        self, view: SweepView, members: Sequence[str], values: Mapping[int, float], step: int
    ) -> list[_Copy]:
        """Who is replaced after `step` steps, and by what."""
        ranking = sorted(values, key=lambda place: (-values[place], place))
        count = min(max(1, round(self._rules.replace * len(members))), len(ranking) // 2)
        best = ranking[: max(1, count)]
        dead = [place for place in range(len(members)) if place not in values]
        copies: list[_Copy] = []
        for place in [*dead, *ranking[len(ranking) - count :]] if best else []:
            rng = np.random.default_rng([self._config.search.seed, step, place])
            parent = members[best[int(rng.integers(len(best)))]]
            copy = self._copy(
                place, view.trials[parent], step, rng, [fingerprint(each.run) for each in copies]
            )
            copies += [] if copy is None else [copy]
        return copies

    def _copy(
        self, place: int, parent: TrialView, step: int, rng: np.random.Generator, taken: Sequence[str]
    ) -> _Copy | None:
        """A copy with other rates; None where the space leaves it none."""
        run = RunConfig.model_validate(parent.config)
        before = {"optim.lr": run.optim.lr, "optim.weight_decay": run.optim.weight_decay}
        if run.optim.phases:
            last = run.optim.phases[-1]
            before = {"optim.lr": last.lr, "optim.weight_decay": last.weight_decay}
        for _ in range(_DRAWS):
            drawn = {
                key: self._moved(key, value, rng) for key, value in before.items() if key in parent.point
            }
            rates = before | drawn
            phase = OptimPhase(from_step=step, lr=rates["optim.lr"], weight_decay=rates["optim.weight_decay"])
            optim = run.optim.model_copy(update={"phases": (*run.optim.phases, phase)})
            copy = run.model_copy(update={"optim": optim})
            if rates != before and fingerprint(copy) not in taken:
                return _Copy(place, parent.fingerprint, copy, {**parent.point, **drawn})
        return None

    def _moved(self, key: str, value: float, rng: np.random.Generator) -> float:
        """Another value of a rate: a factor away within an interval, or the next one of a list."""
        domain = self._config.space[key]
        if domain.values is not None:
            known = sorted(float(each) for each in domain.values)
            place = known.index(value) + int(rng.choice([-1, 1]))
            return known[min(max(place, 0), len(known) - 1)]
        low, high = domain.log_uniform or domain.uniform or (value, value)
        factor = self._rules.factors[int(rng.integers(len(self._rules.factors)))]
        return min(max(value * factor, low), high)

    def _entries(
        self, view: SweepView, members: Sequence[str], copies: Sequence[_Copy], step: int
    ) -> list[Entry]:
        """Lines of a decision that the ledger lacks: copies first, so that they begin before others go on."""
        entries: list[Entry] = []
        for copy in copies:
            name = fingerprint(copy.run)
            if name not in view.trials:
                number = len(view.trials) + len(entries)
                entries.append(Entry("asked", name, _asked(copy, number, step)))
        replaced = {copy.place: view.trials[copy.parent].number for copy in copies}
        for place, name in enumerate(members):
            trial = view.trials[name]
            if trial.state != "paused" or trial.paused_at != step:
                continue
            if place in replaced:
                reason = f"replaced after {step} steps by a copy of trial {replaced[place]}"
                value = dict(trial.reports)[step][self._objective.metric]
                entries.append(Entry("pruned", name, {"step": step, "objective": value, "reason": reason}))
            else:
                entries.append(Entry("continued", name, {"step": step}))
        return entries


def copies_planned(config: SweepConfig) -> int:
    """Copies at most, if no member fails."""
    population, size = config.search.population, config.search.trials or 0
    decisions = (config.run.train.steps - 1) // population.every
    return decisions * min(max(1, round(population.replace * size)), size // 2)


def population_faults(config: SweepConfig) -> Iterator[Fault]:
    """What population-based training cannot do with this sweep."""
    if config.search.name != "pbt":
        return
    every, train = config.search.population.every, config.run.train
    at = ("search", "population", "every")
    if not any(key in config.space for key in RATES):
        text = (
            f"search.name: pbt changes rates while it trains, but the space has none of {', '.join(RATES)}."
        )
        yield Fault(("search", "name"), text)
    for key in (
        "train.steps",
        "train.eval_every",
        "train.checkpoint_every",
        "optim.phases",
        "optim.restarts",
    ):
        if key in config.space:
            yield Fault(("space", key), f"space.{key} cannot be varied by search.name: pbt.")
    if every >= train.steps:
        text = f"search.population.every must be below run.train.steps, {train.steps}, but got {every}."
        yield Fault(at, text)
    for name in ("eval_every", "checkpoint_every"):
        unit = getattr(train, name)
        if every % unit:
            text = f"search.population.every must be a multiple of run.train.{name}, {unit}, but got {every}."
            yield Fault(at, text, "A decision needs a value and a checkpoint at its step.")
    if config.pruner.name != "none":
        text = f"pruner.name must be none for search.name: pbt, but got {config.pruner.name}."
        yield Fault(("pruner", "name"), text, "The population itself stops its worst.")
    if config.search.trials is not None and config.search.trials < 2:
        yield Fault(("search", "trials"), "search.trials must be at least 2 for search.name: pbt, but got 1.")


def _asked(copy: _Copy, number: int, step: int) -> dict[str, object]:
    point: Mapping[str, Scalar] = copy.point
    return {
        "number": number,
        "stage": "search",
        "config": copy.run.model_dump(mode="json"),
        "point": dict(point),
        "seed": copy.run.seed,
        "proposal": None,
        "parent": copy.parent,
        "parent_step": step,
    }


def _steps(trial: TrialView) -> int:
    return int(trial.config["train"]["steps"])


def _value(trial: TrialView, step: int, objective: Objective) -> float | None:
    """The objective at a decision that the trial has reached, larger being better; else None."""
    if max(trial.paused_at, 0) < step:
        return None
    value = dict(trial.reports).get(step, {}).get(objective.metric, math.nan)
    return objective.better(value) if math.isfinite(value) else None
