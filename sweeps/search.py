"""Who proposes configurations: a grid, random draws or Optuna. The only file that imports optuna.

A searcher is a function of its seed and of what it was asked and told, in order. The director feeds
the ledger's record through `recall` and `tell`, which gives the same searcher back after a crash.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from replora.errors import MachineError
from sweeps.config import Domain, Scalar, SearchConfig, SweepConfig
from sweeps.space import Point, Space

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.samplers import BaseSampler

__all__ = [
    "GridSearch",
    "OptunaSearch",
    "Outcome",
    "RandomSearch",
    "Searcher",
    "check_installed",
    "make_searcher",
]

Direction = Literal["maximize", "minimize"]
#: Samplers that note in the study what they drew: they must draw for given points as well.
STATEFUL = ("cma-es", "qmc")


@dataclass(frozen=True)
class Outcome:
    """What became of a proposal.

    Attributes:
        state: `pruned` means that `value` is not of a full-length training.
        value: The objective; None where it failed.
        reports: Step and objective of every evaluation.
    """

    state: Literal["finished", "pruned", "failed"]
    value: float | None = None
    reports: Sequence[tuple[int, float]] = ()


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


class OptunaSearch:
    """Proposals of an Optuna sampler over a study in memory.

    Every proposal gets a fresh sampler whose seed depends on the search's seed and the proposal's
    number. So a proposal depends on the record of the study alone, not on how often some process
    drew random numbers, and a study rebuilt from the ledger goes on as the lost one would have.

    Pruned trials are told as PRUNED with their values at each step, failed ones as FAIL.
    """

    def __init__(self, space: Space, config: SearchConfig, direction: Direction) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space = space
        self._config = config
        self._make_sampler = _sampler_factory(space, config)
        self._study: Study = optuna.create_study(direction=direction, sampler=self._make_sampler(0))
        self._trials: list[Trial] = []

    @property
    def left(self) -> int:
        """Proposals that are still to come."""
        return (self._config.trials or 0) - len(self._trials)

    def ask(self) -> Point:
        """The sampler's next proposal, after those of `search.first`."""
        number = len(self._trials)
        return self._ask(self._config.first[number] if number < len(self._config.first) else None)

    def recall(self, point: Point) -> None:
        """Makes the study take the given point as its next proposal."""
        self._ask(point)

    def tell(self, number: int, outcome: Outcome) -> None:
        """Records the end of a proposal in the study."""
        from optuna.trial import TrialState

        trial = self._trials[number]
        if outcome.value is None:
            self._study.tell(trial, state=TrialState.FAIL)
            return
        for step, value in outcome.reports:
            trial.report(value, step)
        if outcome.state == "finished":
            self._study.tell(trial, outcome.value)
        elif outcome.reports:
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            self._study.tell(trial, state=TrialState.FAIL)

    def _ask(self, forced: Point | None) -> Point:
        self._study.sampler = self._make_sampler(len(self._trials))
        if forced is not None:
            self._study.enqueue_trial(dict(forced))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # experimental parts of Optuna that are chosen on purpose
            trial = self._study.ask()
            if forced is not None and self._config.sampler in STATEFUL:
                _ = trial.relative_params  # draws, though nothing is taken from it
            point = self._suggest(trial)
        self._trials.append(trial)
        return point

    def _suggest(self, trial: Trial) -> Point:
        point: Point = {}
        for key, domain in self._space.domains.items():
            if self._space.exists(key, point):
                point[key] = _suggest(trial, key, domain)
        return point


def make_searcher(config: SweepConfig, direction: Direction) -> Searcher:
    """The configured searcher, having been asked nothing."""
    space = Space(config)
    if config.search.name == "grid":
        return GridSearch(space, config.search.first)
    if config.search.name == "random":
        return RandomSearch(space, config.search)
    return OptunaSearch(space, config.search, direction)


def _suggest(trial: Trial, key: str, domain: Domain) -> Scalar:
    if domain.values is not None:
        return domain.values[domain.values.index(trial.suggest_categorical(key, domain.values))]
    integers = domain.integers or domain.log_integers
    if integers is not None:
        return trial.suggest_int(key, *integers, log=domain.log_integers is not None)
    floats = domain.uniform or domain.log_uniform
    assert floats is not None
    return trial.suggest_float(key, *floats, log=domain.log_uniform is not None)


def _sampler_factory(space: Space, config: SearchConfig) -> Any:
    """Makes the sampler of the n-th proposal."""
    conditional = any(domain.when for domain in space.domains.values())

    def make(number: int) -> BaseSampler:
        from optuna import samplers

        seed = int(np.random.SeedSequence([config.seed, number]).generate_state(1)[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `group` is experimental; it is what conditional spaces need
            if config.sampler == "cma-es":
                return samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
            if config.sampler == "gp":
                return samplers.GPSampler(seed=seed, warn_independent_sampling=False)
            if config.sampler == "qmc":  # one scrambled sequence: the seed must stay the same
                return samplers.QMCSampler(scramble=True, seed=config.seed, warn_independent_sampling=False)
            # Multivariate with the constant liar, as trials run side by side (defaults of Optuna 5).
            return samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True, group=conditional)

    return make


def check_installed(config: SearchConfig) -> None:
    """Refuses a searcher whose package is missing, before a sweep leaves anything behind.

    Raises:
        MachineError: Saying what to install.
    """
    if config.name != "optuna":
        return
    for package in (
        "optuna",
        *({"cma-es": ["cmaes"], "gp": ["torch"], "qmc": ["scipy"]}.get(config.sampler, [])),
    ):
        if importlib.util.find_spec(package) is None:
            raise MachineError(
                f"search.sampler: {config.sampler} needs the package {package}, which is not installed.\n"
                f"  Install it (pip install {package}), or take another sampler (tpe needs only optuna)."
            )
