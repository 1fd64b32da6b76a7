"""The searcher that a sweep's configuration names."""

from __future__ import annotations

from collections.abc import Sequence

from sweeps.config import SweepConfig
from sweeps.objective import Objective
from sweeps.search.optuna_search import OptunaSearch
from sweeps.search.searcher import GridSearch, RandomSearch, Searcher
from sweeps.space import Space

__all__ = ["make_searcher"]


def make_searcher(config: SweepConfig, objectives: Sequence[Objective]) -> Searcher:
    """The configured searcher, having been asked nothing.

    Args:
        config: The sweep.
        objectives: Of the sweep, in their order.
    """
    space = Space(config)
    if config.search.name == "grid":
        return GridSearch(space, config.search.first)
    if config.search.name == "optuna":
        return OptunaSearch(space, config.search, [objective.direction for objective in objectives])
    return RandomSearch(space, config.search)  # also the first generation of population-based training
