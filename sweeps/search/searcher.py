"""Who proposes configurations: the contract, a grid, and random draws.

A searcher is a function of its seed and of what it was asked and told, in order. The director feeds
the ledger's record through `recall` and `tell`, which gives the same searcher back after a crash.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from sweeps.config import SearchConfig
from sweeps.space import Point, Space

__all__ = ["GridSearch", "Learner", "Outcome", "RandomSearch", "Searcher"]


@dataclass(frozen=True)
class Outcome:
    """What became of a proposal.

    Attributes:
        state: `pruned` means that the values are not of a full-length training.
        values: One for each objective; empty where it failed.
        reports: Step and first objective of every evaluation.
        excess: By how much of it the proposal was above a limit and so not trained; 0 within all limits.
    """

    state: Literal["finished", "pruned", "failed"]
    values: tuple[float, ...] = ()
    reports: Sequence[tuple[int, float]] = ()
    excess: float = 0.0


class Searcher(Protocol):
    """Proposals are numbered 0, 1, ... in the order of `ask` and `recall`."""

    @property
    def left(self) -> int:
        """Proposals that are still to come."""
        ...

    def ask(self) -> Point:
        """The next proposal; only while some are left."""
        ...

    def recall(self, point: Point) -> None:
        """Counts a proposal of an earlier process as made."""
        ...

    def tell(self, number: int, outcome: Outcome) -> None:
        """Learns what became of a proposal; once for each."""
        ...


@runtime_checkable
class Learner(Protocol):
    """A searcher that can use what it did not propose."""

    def learn(self, point: Point, values: Sequence[float]) -> None:
        """Takes in the objectives of a finished trial of another sweep, before its own first proposal."""
        ...


class GridSearch:
    """The points of `search.first`, then every other point of the grid in its fixed order."""

    def __init__(self, space: Space, first: Sequence[Point] = ()) -> None:
        known = [tuple(sorted(point.items())) for point in first]
        rest = [point for point in space.grid() if tuple(sorted(point.items())) not in known]
        self._points = [*first, *rest]
        self._asked = 0

    @property
    def left(self) -> int:
        """Points that were not proposed yet."""
        return len(self._points) - self._asked

    def ask(self) -> Point:
        """The next point of the grid."""
        self._asked += 1
        return dict(self._points[self._asked - 1])

    def recall(self, point: Point) -> None:
        """Passes over a point."""
        self._asked += 1

    def tell(self, number: int, outcome: Outcome) -> None:
        """A grid learns nothing."""


class RandomSearch:
    """Independent draws; the n-th depends on the seed and on n alone."""

    def __init__(self, space: Space, config: SearchConfig) -> None:
        self._space = space
        self._config = config
        self._asked = 0

    @property
    def left(self) -> int:
        """Draws that are still to come."""
        return (self._config.trials or 0) - self._asked

    def ask(self) -> Point:
        """The next draw."""
        number, self._asked = self._asked, self._asked + 1
        if number < len(self._config.first):
            return dict(self._config.first[number])
        return self._space.draw(np.random.default_rng([self._config.seed, number]))

    def recall(self, point: Point) -> None:
        """Passes over a draw."""
        self._asked += 1

    def tell(self, number: int, outcome: Outcome) -> None:
        """Random search learns nothing."""
