"""Several objectives at once: which configurations no other one beats, and which of them to take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from sweeps.groups import Group, groups_of, ranked
from sweeps.ledger import SweepView, TrialView
from sweeps.objective import Objective

__all__ = ["knee", "means_of", "non_dominated", "to_confirm"]

#: An objective of positive values over more than this factor is scaled by its logarithm (choice).
_LOG_FROM = 10.0
Values = Sequence[float]


def means_of(trials: Sequence[TrialView], objectives: Sequence[Objective]) -> tuple[float, ...]:
    """Mean of each objective over the trials' last steps; NaN where one was not reported."""
    return tuple(
        fmean(trial.metrics.get(objective.metric, math.nan) for trial in trials) for objective in objectives
    )


def non_dominated(values: Sequence[Values], objectives: Sequence[Objective]) -> list[int]:
    """Indices of the Pareto front, best in the first objective first, then by their order.

    One point dominates another that it is nowhere worse than and somewhere better. Of equal points, all
    are on the front.
    """
    signed = [tuple(o.better(v) for o, v in zip(objectives, point, strict=True)) for point in values]
    front: list[int] = []
    # In this order a point can only be dominated by one that came before it, and so by one of the front.
    for index in sorted(range(len(signed)), key=lambda index: tuple(-value for value in signed[index])):
        if not any(_dominates(signed[other], signed[index]) for other in front):
            front.append(index)
    return front


def _dominates(one: Values, other: Values) -> bool:
    return all(a >= b for a, b in zip(one, other, strict=True)) and tuple(one) != tuple(other)


def knee(values: Sequence[Values], objectives: Sequence[Objective]) -> int:
    """Index of the point of a front that is nearest to the best value of every objective at once.

    Each objective is scaled to [0, 1] over the front, by its logarithm where it is positive and spans more
    than a factor of 10; distances are Euclidean (all of this is a *choice*). Of equally near ones, the first.

    Args:
        values: Of a front, which must not be empty.
        objectives: Which way each is better.
    """
    columns = [
        _scaled(column, objective)
        for column, objective in zip(zip(*values, strict=True), objectives, strict=True)
    ]
    distances = [math.dist(point, [1.0] * len(objectives)) for point in zip(*columns, strict=True)]
    return distances.index(min(distances))


def _scaled(column: Values, objective: Objective) -> list[float]:
    """From 0 (the worst of the front) to 1 (the best)."""
    if min(column) > 0 and max(column) / min(column) > _LOG_FROM:
        column = [math.log(value) for value in column]
    signed = [objective.better(value) for value in column]
    low, high = min(signed), max(signed)
    return [1.0 if low == high else (value - low) / (high - low) for value in signed]


def to_confirm(view: SweepView, top: int) -> list[Group]:
    """Configurations of the search that get fresh seeds, the best first.

    With several objectives they are of the front: all, or an even choice with both its ends.
    """
    if len(view.objectives) == 1:
        return ranked(view)[:top]
    groups = [group for group in groups_of(view) if group.searched]
    values = [means_of(group.search, view.objectives) for group in groups]
    front = [groups[index] for index in non_dominated(values, view.objectives)]
    if len(front) <= top:
        return front
    return [front[round(index * (len(front) - 1) / max(1, top - 1))] for index in range(top)]
