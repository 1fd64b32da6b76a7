"""Adaptive seeds: a race in which configurations get more seeds only while they may be the best.

Every entrant first gets `confirm.start` fresh seeds; then, seed by seed, those that are still in get one
more. At each look, whoever is worse than the leader in a paired t test at the level
`0.05 / (looks * (entrants - 1))` is out, so that over the whole race the best one is dropped with a
probability of at most 5 % (Bonferroni over looks and pairs). The race ends with one left, or no more seeds.

References:
    [1] Maron and Moore, "Hoeffding Races", NIPS 1993 (the idea; the test here is another).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from sweeps.config import ConfirmConfig
from sweeps.groups import Group
from sweeps.interval import LEVEL, difference
from sweeps.objective import Objective

__all__ = ["Race", "looks_of", "run_race"]


@dataclass(frozen=True)
class Race:
    """How far a race is.

    Attributes:
        wanted: Entrants that get another seed now, each with the seeds that it must have.
        dropped: Words on why an entrant is out, by its number.
    """

    wanted: tuple[tuple[Group, tuple[int, ...]], ...]
    dropped: dict[int, str]


def looks_of(confirm: ConfirmConfig) -> int:
    """How often a race compares at most; 1 where all seeds come at once."""
    return 1 if confirm.start is None else max(1, len(confirm.seeds) - confirm.start + 1)


def run_race(entrants: Sequence[Group], confirm: ConfirmConfig, objective: Objective) -> Race:
    """The race as far as the results go; a function of them alone.

    Args:
        entrants: Configurations of the search, the best first, with their fresh trials so far.
        confirm: Its seeds, in the order in which they are given out.
        objective: What is compared.
    """
    dropped: dict[int, str] = {}
    alive, start = list(entrants), confirm.start or len(confirm.seeds)
    alpha = (1 - LEVEL) / (looks_of(confirm) * max(1, len(entrants) - 1))
    for count in range(start, len(confirm.seeds) + 1):
        seeds = confirm.seeds[:count]
        trials = {group.number: [t for t in group.confirm if t.seed in seeds] for group in alive}
        short = [group for group in alive if len(trials[group.number]) < count]
        if short:
            return Race(tuple((group, seeds) for group in short), dropped)
        if any(not trial.ended for found in trials.values() for trial in found):
            return Race((), dropped)
        failed = [group for group in alive if any(t.state != "finished" for t in trials[group.number])]
        dropped |= {group.number: "a fresh seed failed" for group in failed}
        alive = [group for group in alive if group not in failed]
        worse = _worse(alive, seeds, objective, alpha)
        dropped |= {group.number: f"dropped by the race after {count} seeds" for group in worse}
        alive = [group for group in alive if group not in worse]
        if len(alive) < 2:
            break
    return Race((), dropped)


def _worse(groups: Sequence[Group], seeds: Sequence[int], objective: Objective, alpha: float) -> list[Group]:
    """Those that are worse than the leader by the race's test."""
    if not groups:
        return []
    values = {group.number: _values(group, seeds, objective) for group in groups}
    leader = max(groups, key=lambda group: fmean(values[group.number].values()))
    tests = [(group, difference(values[leader.number], values[group.number])) for group in groups]
    return [group for group, test in tests if group is not leader and test is not None and test.p < alpha]


def _values(group: Group, seeds: Sequence[int], objective: Objective) -> dict[int, float]:
    return {
        trial.seed: objective.better(trial.objective)
        for trial in group.confirm
        if trial.seed in seeds and trial.objective is not None
    }
