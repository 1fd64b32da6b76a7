"""Optuna's samplers: which there are, what each needs, and what it cannot do."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from replora.errors import MachineError
from replora.reading.faults import Fault
from sweeps.config import SearchConfig, SweepConfig
from sweeps.space import Space

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

__all__ = ["CONSTRAINED", "STATEFUL", "check_installed", "sampler_factory", "sampler_faults"]

#: Samplers that note in the study what they drew: they must draw for given points as well.
STATEFUL = ("cma-es", "qmc", "nsga2")
#: Samplers that keep away from where a constraint is broken.
CONSTRAINED = ("tpe", "gp", "nsga2")
#: Parents of a generation of NSGA-II: Optuna's default, or a quarter of a smaller search (choice).
_POPULATION, _GENERATIONS = 50, 4
#: CMA-ES adapts a covariance, which has nothing to say of a single key.
_CMA_KEYS = 2


def sampler_factory(space: Space, config: SearchConfig) -> Callable[[int], BaseSampler]:
    """Makes the sampler of the n-th proposal.

    Each has a seed of its own, so that a proposal depends on the record of the study alone.
    """
    conditional = any(domain.when for domain in space.domains.values())

    def make(number: int) -> BaseSampler:
        from optuna import samplers

        seed = int(np.random.SeedSequence([config.seed, number]).generate_state(1)[0])
        quiet: dict[str, Any] = {"warn_independent_sampling": False}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `group` is experimental; it is what conditional spaces need
            match config.sampler:
                case "cma-es":
                    return samplers.CmaEsSampler(seed=seed, **quiet)
                case "gp":
                    return samplers.GPSampler(seed=seed, **quiet)
                case (
                    "qmc"
                ):  # one scrambled sequence: its seed must stay the same, that of other draws must not
                    others = samplers.RandomSampler(seed=seed)
                    return samplers.QMCSampler(
                        scramble=True, seed=config.seed, independent_sampler=others, **quiet
                    )
                case "nsga2":
                    parents = max(2, min(_POPULATION, (config.trials or 0) // _GENERATIONS))
                    return samplers.NSGAIISampler(population_size=parents, seed=seed)
            # Multivariate with the constant liar, as trials run side by side (defaults of Optuna 5).
            return samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True, group=conditional)

    return make


def sampler_faults(config: SweepConfig, objectives: int) -> Iterator[Fault]:
    """What the chosen sampler cannot do with this space or this number of objectives."""
    if config.search.name != "optuna":
        return
    at, sampler = ("search", "sampler"), config.search.sampler
    if sampler == "cma-es":
        usable = [key for key, domain in config.space.items() if domain.values is None and not domain.when]
        if len(usable) < _CMA_KEYS:
            got = ", ".join(usable) or "none"
            text = f"search.sampler: cma-es needs two keys with an interval and no `when`, but got {got}."
            yield Fault(at, text, "It draws lists of values and conditional keys at random. Take tpe.")
        if objectives > 1:
            yield Fault(at, "search.sampler: cma-es takes one objective.", "Take tpe, nsga2 or gp.")
    if sampler == "nsga2" and objectives < 2:
        yield Fault(at, "search.sampler: nsga2 is for several objectives.", "Take tpe.")


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
