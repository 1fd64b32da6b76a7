"""Proposals of Optuna's samplers over a study that is rebuilt from the ledger."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from sweeps.config import Domain, Scalar, SearchConfig
from sweeps.search.samplers import CONSTRAINED, STATEFUL, sampler_factory
from sweeps.search.searcher import Outcome
from sweeps.space import Point, Space

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution

__all__ = ["LIMIT", "OptunaSearch", "distribution_of"]

Direction = Literal["maximize", "minimize"]
#: Optuna's name of the constraint that stands for `search.max_parameters`.
LIMIT = "limit"


class OptunaSearch:
    """Proposals of an Optuna sampler over a study in memory.

    Every proposal gets a fresh sampler whose seed depends on the search's seed and the proposal's
    number. So a proposal depends on the record of the study alone, not on how often some process
    drew random numbers, and a study rebuilt from the ledger goes on as the lost one would have.

    Pruned trials are told as PRUNED with their values at each step, failed ones as FAIL, and those that
    were above a limit as PRUNED with a constraint that they broke, where the sampler knows constraints.
    """

    def __init__(self, space: Space, config: SearchConfig, directions: Sequence[Direction]) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space = space
        self._config = config
        self._make_sampler = sampler_factory(space, config)
        self._study: Study = optuna.create_study(directions=list(directions), sampler=self._make_sampler(0))
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
        if outcome.excess and self._config.sampler in CONSTRAINED:
            trial.set_constraint(LIMIT, outcome.excess)
            self._study.tell(trial, state=TrialState.PRUNED)
            return
        for step, value in outcome.reports if outcome.values and len(self._study.directions) == 1 else ():
            trial.report(value, step)
        if outcome.state == "finished" and outcome.values:
            self._study.tell(trial, outcome.values)
        elif outcome.state == "pruned" and outcome.reports:
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            self._study.tell(trial, state=TrialState.FAIL)

    def learn(self, point: Point, values: Sequence[float]) -> None:
        """Adds a finished trial of an earlier sweep to the study; it is no proposal."""
        import optuna

        kinds = {key: distribution_of(self._space.domains[key]) for key in point}
        self._study.add_trial(
            optuna.trial.create_trial(params=dict(point), distributions=kinds, values=list(values))
        )

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


def _suggest(trial: Trial, key: str, domain: Domain) -> Scalar:
    if domain.values is not None:
        return domain.values[domain.values.index(trial.suggest_categorical(key, domain.values))]
    integers = domain.integers or domain.log_integers
    if integers is not None:
        return trial.suggest_int(key, *integers, log=domain.log_integers is not None)
    floats = domain.uniform or domain.log_uniform
    assert floats is not None
    return trial.suggest_float(key, *floats, log=domain.log_uniform is not None)


def distribution_of(domain: Domain) -> BaseDistribution:
    """What Optuna knows of a key when `_suggest` asks for it."""
    from optuna import distributions

    if domain.values is not None:
        return distributions.CategoricalDistribution(domain.values)
    if domain.integers or domain.log_integers:
        low, high = domain.integers or domain.log_integers or (0, 0)
        return distributions.IntDistribution(low, high, log=domain.log_integers is not None)
    first, last = domain.uniform or domain.log_uniform or (0.0, 0.0)
    return distributions.FloatDistribution(first, last, log=domain.log_uniform is not None)
