"""A sweep as data: a base run, a space of dotted keys, a search, a pruner, seeds and resources."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from replora.config import RunConfig
from replora.frozen import Frozen, Positive

__all__ = [
    "BudgetConfig",
    "ConfirmConfig",
    "Domain",
    "ObjectiveConfig",
    "PopulationConfig",
    "PrunerConfig",
    "ResourceConfig",
    "SearchConfig",
    "SweepConfig",
    "TrackingConfig",
]

Scalar = bool | int | float | str


class Domain(Frozen):
    """The values of one key: exactly one of `values`, `uniform`, `log_uniform`, `integers`, `log_integers`.

    Attributes:
        values: Explicit values; the only form that a grid accepts.
        uniform: Low and high bound of a float, both included.
        log_uniform: The same on a logarithmic scale; low > 0.
        integers: Low and high bound of an integer, both included.
        log_integers: The same on a logarithmic scale; low >= 1.
        when: Other keys' values under which this key exists, for example `{method.name: [replora]}`.
    """

    HINT: ClassVar[str] = "For example {values: [4, 8]} or {log_uniform: [0.0001, 0.1]}."

    values: Annotated[tuple[Scalar, ...], Field(min_length=1)] | None = None
    uniform: tuple[float, float] | None = None
    log_uniform: tuple[float, float] | None = None
    integers: tuple[int, int] | None = None
    log_integers: tuple[int, int] | None = None
    when: dict[str, tuple[Scalar, ...]] = {}


class PopulationConfig(Frozen):
    """Population-based training: when the worst copy the best, and how the copies differ.

    Attributes:
        every: Optimizer steps between two decisions.
        replace: Share of the population that is replaced at each decision.
        factors: A copy's learning rate and weight decay are each multiplied by one of them, within the space.
    """

    every: Positive = 50
    replace: Annotated[float, Field(gt=0.0, le=0.5)] = 0.25
    factors: Annotated[tuple[Annotated[float, Field(gt=0.0)], ...], Field(min_length=1)] = (0.8, 1.25)


class SearchConfig(Frozen):
    """Who proposes configurations.

    Attributes:
        name: `grid` takes the product of all values; `random` and `optuna` draw `trials` of them; `pbt`
            draws a population of `trials` and lets the worst copy the best while they train.
        trials: Configurations to draw; must be null for a grid.
        sampler: Of Optuna.
        seed: Of the searcher; the same seed proposes the same first configurations.
        first: Configurations (dotted key -> value) that are tried before any other.
        warm_start: Folders of earlier sweeps whose finished trials Optuna is told before it proposes.
        max_parameters: Proposals that would train more parameters (without the head) are not trained.
        population: Of `pbt`.
    """

    name: Literal["grid", "random", "optuna", "pbt"] = "grid"
    trials: Positive | None = None
    sampler: Literal["tpe", "cma-es", "gp", "qmc", "nsga2"] = "tpe"
    seed: Annotated[int, Field(ge=0)] = 0
    first: tuple[dict[str, Scalar], ...] = ()
    warm_start: tuple[Path, ...] = ()
    max_parameters: Positive | None = None
    population: PopulationConfig = PopulationConfig()


class PrunerConfig(Frozen):
    """Who stops trials early, judged on the objective at equal steps.

    Attributes:
        grace_steps: No trial stops before so many optimizer steps.
        reduction: ASHA keeps the best 1 / reduction at each rung.
        schedule: `full`: a trial's learning-rate schedule is that of its full length, so a stopped trial
            was not annealed and its value is a bound. `rung` (ASHA): the schedule comes to its end at
            every rung and begins anew, so values at a rung are of annealed trainings.
    """

    name: Literal["none", "asha", "median"] = "none"
    grace_steps: Positive = 50
    reduction: Annotated[int, Field(ge=2)] = 3
    schedule: Literal["full", "rung"] = "full"


class ObjectiveConfig(Frozen):
    """What is optimized on the validation split; null means the task's primary metric and direction.

    Beside the task's metrics: `trainable_parameters` (without the head) and `ppt`, the trade-off of
    accuracy and trainable parameters.
    """

    HINT: ClassVar[str] = "For example {metric: accuracy}."

    metric: str | None = None
    direction: Literal["maximize", "minimize"] | None = None


#: One objective, or several, for which the sweep finds the Pareto front.
Objectives = Annotated[
    Annotated[ObjectiveConfig, Tag("(one)")]
    | Annotated[tuple[ObjectiveConfig, ...], Field(min_length=1), Tag("(several)")],
    Discriminator(lambda value: "(several)" if isinstance(value, list | tuple) else "(one)"),
]


class ConfirmConfig(Frozen):
    """Fresh seeds for the best configurations, so that the choice does not rest on the luck of one seed.

    Attributes:
        top: Configurations that are confirmed; 0 turns confirmation off.
        seeds: Seeds that the search did not use.
        start: Null: every one gets all seeds. A number: a race; every one gets so many seeds, then those
            that cannot be told from the best get one more at a time.
    """

    top: Annotated[int, Field(ge=0)] = 0
    seeds: tuple[int, ...] = ()
    start: Annotated[int, Field(ge=2)] | None = None


class BudgetConfig(Frozen):
    """Where a sweep stops asking for trials; what runs then trains to its end. Null: no limit.

    Attributes:
        trials: Trials of search and confirmation together.
        hours: Of the sweep's own running time, over all its starts.
        examples: Training examples, batch times optimizer steps, over all trials.
        tokens: The same in tokens, each example counted with the task's `cutoff` (an upper bound).
    """

    trials: Positive | None = None
    hours: Annotated[float, Field(gt=0.0)] | None = None
    examples: Positive | None = None
    tokens: Positive | None = None


class ResourceConfig(Frozen):
    """Where trials run; null lets the planner measure and decide.

    Attributes:
        hosts: Processes that hold a frozen base each.
        slots: Trials that train at once on one host (K).
        threads: CPU threads of one host.
        address: Of a running Ray cluster (`auto` finds the local one); null starts Ray on this machine.
    """

    hosts: Positive | None = None
    slots: Positive | None = None
    threads: Positive | None = None
    address: str | None = None


class TrackingConfig(Frozen):
    """MLflow; null URI means SQLite in the sweep's folder.

    Credentials come from MLflow's own environment variables, never from this file.
    """

    uri: str | None = None
    experiment: str | None = None


class SweepConfig(Frozen):
    """A whole sweep.

    Attributes:
        name: Also the name of the default folder, `runs/<name>`.
        run: The configuration that every trial starts from.
        space: Dotted keys of the run, for example `optim.lr`, with their values.
        seeds: Seeds of every configuration in the search; more than one needs a grid or random search.
        objective: One, or a list of several for a Pareto front; the first decides where only one can.
        max_failures: Times a failed trial (not a diverged one) is started again from its checkpoint.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    run: RunConfig = RunConfig()
    space: Annotated[dict[str, Domain], Field(min_length=1)]
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)
    search: SearchConfig = SearchConfig()
    pruner: PrunerConfig = PrunerConfig()
    objective: Objectives = ObjectiveConfig()
    confirm: ConfirmConfig = ConfirmConfig()
    budget: BudgetConfig = BudgetConfig()
    backend: Literal["ray", "in-process"] = "ray"
    resources: ResourceConfig = ResourceConfig()
    tracking: TrackingConfig = TrackingConfig()
    max_failures: Annotated[int, Field(ge=0)] = 2

    @model_validator(mode="after")
    def _search_fits(self) -> SweepConfig:
        if self.search.name == "grid" and self.search.trials is not None:
            raise ValueError("search.trials must be null for a grid: its size is the product of the values")
        if self.search.name != "grid" and self.search.trials is None:
            raise ValueError(f"search.trials is needed for search.name: {self.search.name}")
        if self.search.name in ("optuna", "pbt") and len(self.seeds) > 1:
            name = {"optuna": "an Optuna search", "pbt": "population-based training"}[self.search.name]
            raise ValueError(f"{name} takes one seed; give the others to confirm.seeds")
        if set(self.seeds) & set(self.confirm.seeds):
            raise ValueError("confirm.seeds must not repeat seeds of the search")
        return self
