"""Taking one point of a Pareto front: the knee, or the best within limits that a person gives."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from replora.errors import ConfigError, RunFailedError
from replora.reading.faults import shown
from replora.verbs import nearest
from sweeps.best import Selection, choose

__all__ = ["Limit", "parse_limit", "within"]


class Limit(NamedTuple):
    """A bound on an objective, both ends included."""

    metric: str
    sign: str
    bound: float

    def holds(self, value: float) -> bool:
        """Whether a value is within it."""
        return value <= self.bound if self.sign == "<=" else value >= self.bound

    def __str__(self) -> str:
        return f"{self.metric}{self.sign}{self.bound:g}"


def parse_limit(text: str) -> Limit:
    """`trainable_parameters<=50000` or `accuracy>=0.9`.

    Raises:
        ConfigError: If it is neither.
    """
    found = re.fullmatch(r"\s*([A-Za-z_][\w.]*)\s*(<=|>=)\s*([-+.\deE_]+)\s*", text)
    try:
        if found is None:
            raise ValueError
        return Limit(found[1], found[2], float(found[3]))
    except ValueError:
        raise ConfigError(
            f"--where must be METRIC<=NUMBER or METRIC>=NUMBER, but got {shown(text)}.\n"
            "  For example: --where 'trainable_parameters<=50000'"
        ) from None


def within(selection: Selection, limits: Sequence[Limit]) -> Selection:
    """The front with the best in its first objective, of those within all limits, as the best.

    Raises:
        ConfigError: If the sweep has one objective only, or a limit names none of them.
        RunFailedError: If no point of the front is within the limits.
    """
    if not limits:
        return selection
    names = [objective.metric for objective in selection.objectives]
    if len(names) < 2:
        raise ConfigError(
            "--where chooses from a Pareto front, but this sweep has one objective.\n"
            "  Give `objective` a list of several, or limit the search with search.max_parameters."
        )
    for limit in limits:
        if limit.metric not in names:
            hint = f"{nearest(limit.metric, names)}Objectives: {', '.join(names)}."
            raise ConfigError(f"--where: {limit.metric} is no objective of this sweep.\n  {hint}")
    for index, point in enumerate(selection.front):
        if all(limit.holds(point.objectives[names.index(limit.metric)]) for limit in limits):
            words = f"best {names[0]} on the Pareto front with {' and '.join(map(str, limits))}"
            return choose(selection, index, words)
    asked = " and ".join(map(str, limits))
    raise RunFailedError(f"no configuration on the Pareto front has {asked}.")
