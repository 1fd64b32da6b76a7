"""From a point of the space to the runs that are its trials."""

from __future__ import annotations

from collections.abc import Iterable

from replora.config import RunConfig
from replora.fingerprint import fingerprint
from replora.load import run_from
from sweeps.config import SweepConfig
from sweeps.pruner import rungs
from sweeps.space import Point

__all__ = ["runs_of", "with_seeds"]


def runs_of(config: SweepConfig, point: Point, seeds: Iterable[int]) -> dict[str, RunConfig]:
    """The runs of a point by fingerprint, one for each seed, with the sweep's schedule.

    Raises:
        ConfigError: If the point is no valid run.
    """
    run = run_from(config.run, dict(point))
    if config.pruner.schedule == "rung":
        optim = run.optim.model_copy(update={"restarts": rungs(config.pruner, run.train.steps)})
        run = run.model_copy(update={"optim": optim})
    return with_seeds(run, seeds)


def with_seeds(run: RunConfig, seeds: Iterable[int]) -> dict[str, RunConfig]:
    """The same run with other seeds, by fingerprint."""
    runs = [run.model_copy(update={"seed": seed}) for seed in seeds]
    return {fingerprint(run): run for run in runs}
