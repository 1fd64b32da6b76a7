"""Configurations of a sweep over their seeds: the trials that differ in the seed only, as one group."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from sweeps.ledger import SweepView, TrialView
from sweeps.objective import Objective
from sweeps.space import Point

__all__ = ["Group", "groups_of", "ranked"]


@dataclass
class Group:
    """One configuration and its trials; a seed belongs to the search or to the confirmation.

    Attributes:
        point: What the sweep varied.
        config: The RunConfig as plain data, without its seed.
    """

    point: Point
    config: dict[str, Any]
    search: list[TrialView] = field(default_factory=list)
    confirm: list[TrialView] = field(default_factory=list)

    @property
    def number(self) -> int:
        """That of its first trial."""
        return (self.search or self.confirm)[0].number

    @property
    def searched(self) -> bool:
        """Every seed of the search was trained to its full length."""
        return bool(self.search) and all(trial.state == "finished" for trial in self.search)

    @property
    def confirmed(self) -> bool:
        """Every fresh seed was trained to its full length."""
        return bool(self.confirm) and all(trial.state == "finished" for trial in self.confirm)


def groups_of(view: SweepView) -> list[Group]:
    """All configurations of a sweep, in the order in which they were first asked for."""
    groups: dict[str, Group] = {}
    for trial in view.trials.values():
        config = {key: value for key, value in trial.config.items() if key not in ("seed", "engine")}
        group = groups.setdefault(json.dumps(config, sort_keys=True), Group(trial.point, config))
        if trial.stage == "search":
            group.search.append(trial)
        elif trial.stage == "confirm":
            group.confirm.append(trial)
    return [group for group in groups.values() if group.search or group.confirm]


def objectives(trials: Sequence[TrialView]) -> list[float]:
    """Objectives of finished trials."""
    return [trial.objective for trial in trials if trial.objective is not None]


def ranked(view: SweepView) -> list[Group]:
    """Configurations whose search ran to the end with every seed, best mean objective first.

    Equal means keep the order of the sweep. Pruned configurations are left out: a value from the middle of a
    learning-rate schedule cannot be compared with one from its end.
    """
    objective = Objective(view.metric, view.direction)
    whole = [group for group in groups_of(view) if group.searched]
    return sorted(whole, key=lambda group: -objective.better(fmean(objectives(group.search))))
