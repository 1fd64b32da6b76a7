"""Everything that can be wrong with a sweep before it starts, found at once.

`replora.load.load(SweepConfig, path, overrides, check=sweep_faults)` places each fault at its line;
`check_sweep` is for sweeps that were built in a program.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

from replora.errors import ConfigError, TrackingError
from replora.reading.faults import Fault, config_error, shown
from replora.verbs import nearest
from sweeps.budget import budget_faults
from sweeps.config import SearchConfig, SweepConfig
from sweeps.domains import contains, domain_faults, domain_text
from sweeps.objective import METRICS, QUANTITIES, objectives_of, parameters_of
from sweeps.population import population_faults
from sweeps.probe import fewest_parameters, grid_faults, value_faults
from sweeps.search import sampler_faults
from sweeps.space import Point, Space
from sweeps.tracking import resolve_uri
from sweeps.warm import warm_faults

__all__ = ["MAX_GRID", "check_sweep", "grid_size", "idle_settings", "sweep_faults"]

MAX_GRID = 100_000  # choice: a grid beyond it would not end, and its list not fit a screen
_SEEDS = 2**31
#: Settings of one search only, with its name.
_OF_SEARCH = {"sampler": "optuna", "population": "pbt"}


def check_sweep(config: SweepConfig) -> None:
    """Refuses a sweep that could not run.

    Raises:
        ConfigError: With every fault.
    """
    faults = list(sweep_faults(config))
    if faults:
        raise config_error(faults, {}, f"the sweep {config.name}")


def sweep_faults(config: SweepConfig) -> Iterator[Fault]:
    """Every fault of a valid SweepConfig: its domains, keys, values, seeds, searcher and pruner."""
    yield from _unnamed_faults(config)
    yield from _seed_faults(config)
    yield from _tracking_faults(config)
    yield from _objective_faults(config)
    yield from _pruner_faults(config)
    yield from _data_faults(config)
    yield from budget_faults(config)
    yield from population_faults(config)
    yield from warm_faults(config)
    yield from sampler_faults(config, len(config.objective) if isinstance(config.objective, tuple) else 1)
    faults = list(domain_faults(config))
    sound = _without(config, {str(fault.keys[1]) for fault in faults})
    if sound is not None:
        faults += value_faults(sound)
    if not faults:
        faults += [*_first_faults(config), *_limit_faults(config)]
    yield from faults
    if faults or config.search.name != "grid":
        return
    size = grid_size(config)
    if size > MAX_GRID:
        text = f"the grid has more than {MAX_GRID:,} points."
        yield Fault(("space",), text, "Take fewer values, or search.name: random.")
    else:
        yield from grid_faults(config)


def _without(config: SweepConfig, keys: set[str]) -> SweepConfig | None:
    """The sweep without faulty keys, so that the others are checked in the same run; None if they matter."""
    if any(key.endswith(".name") for key in keys):
        return None  # without it, fields of the variants that it would choose would look wrong
    kept = {
        key: domain
        for key, domain in config.space.items()
        if key not in keys and not keys & domain.when.keys()
    }
    return config.model_copy(update={"space": kept})


def grid_size(config: SweepConfig) -> int:
    """Points of a grid, counted no further than just above `MAX_GRID`."""
    return sum(1 for _, _ in zip(Space(config).grid(), range(MAX_GRID + 1), strict=False))


def _unnamed_faults(config: SweepConfig) -> Iterator[Fault]:
    """Settings of something whose name was forgotten, so that they would do nothing."""
    search, pruner = config.search.model_fields_set, config.pruner.model_fields_set
    if "name" not in search:
        for setting in sorted(_OF_SEARCH.keys() & search):
            text = f"search.{setting} does nothing without search.name: {_OF_SEARCH[setting]}."
            yield Fault(("search", setting), text, "Without a name the search is a grid.")
    if "name" not in pruner:
        for setting in sorted(pruner):
            text = f"pruner.{setting} does nothing without pruner.name: asha or median."
            yield Fault(("pruner", setting), text)


def idle_settings(config: SweepConfig) -> Iterator[str]:
    """What was set and does nothing, being of another search than the one that is named."""
    default = SearchConfig()
    for setting, name in _OF_SEARCH.items():
        if config.search.name != name and getattr(config.search, setting) != getattr(default, setting):
            yield f"search.{setting} does nothing with search.name: {config.search.name}; it is of {name}."


def _tracking_faults(config: SweepConfig) -> Iterator[Fault]:
    if config.tracking.uri is None:
        return
    try:
        resolve_uri(Path(), config.tracking.uri)
    except TrackingError as error:
        text, _, hint = str(error).partition("\n")
        yield Fault(("tracking", "uri"), text, hint.strip())


def _seed_faults(config: SweepConfig) -> Iterator[Fault]:
    for keys, seeds in ((("seeds",), config.seeds), (("confirm", "seeds"), config.confirm.seeds)):
        name = ".".join(keys)
        for index, seed in enumerate(seeds):
            if not 0 <= seed < _SEEDS:
                yield Fault((*keys, index), f"{name}[{index}] must be in 0 to {_SEEDS - 1}, but got {seed}.")
        if len(set(seeds)) < len(seeds):
            yield Fault(keys, f"{name} must not repeat a seed, but got {shown(list(seeds))}.")
    if config.confirm.top and not config.confirm.seeds:
        text = "confirm.seeds is needed where confirm.top is above 0."
        yield Fault(("confirm",), text, "For example [1, 2, 3].")
    if config.confirm.seeds and not config.confirm.top:
        text = "confirm.top must be at least 1 where confirm.seeds are given, but got 0."
        yield Fault(("confirm",), text, "Leave out confirm for a sweep without confirmation.")
    if config.confirm.start is not None and config.confirm.start >= len(config.confirm.seeds):
        count, start = len(config.confirm.seeds), config.confirm.start
        text = f"confirm.start must be below the number of confirm.seeds, {count}, but got {start}."
        yield Fault(("confirm", "start"), text, "Leave it out to give every configuration all seeds at once.")


def _objective_faults(config: SweepConfig) -> Iterator[Fault]:
    several = isinstance(config.objective, tuple)
    asked = config.objective if isinstance(config.objective, tuple) else (config.objective,)
    task = config.run.task.name
    names = (*METRICS[task], *QUANTITIES)
    unknown = {index: each.metric for index, each in enumerate(asked) if each.metric not in (None, *names)}
    for index, metric in unknown.items():
        text = f"objective.metric must be a metric of the task {task}, but got {metric!r}."
        hint = f"{nearest(str(metric), names)}Metrics: {', '.join(names)}."
        yield Fault((*(("objective", index) if several else ("objective",)), "metric"), text, hint)
    if not unknown:
        yield from _known_objective_faults(config)


def _known_objective_faults(config: SweepConfig) -> Iterator[Fault]:
    try:
        objectives = objectives_of(config)
    except ConfigError as error:
        text, _, hint = str(error).partition("\n")
        yield Fault(("objective",), text, hint.strip())
        return
    for index, objective in enumerate(objectives):
        at = ("objective", index) if isinstance(config.objective, tuple) else ("objective",)
        if objective.metric in QUANTITIES and parameters_of(config.run) is None:
            text = f"objective.metric: {objective.metric} needs a backbone whose sizes are known beforehand."
            yield Fault((*at, "metric"), text, f"Of {config.run.backbone.name} they are not.")
        elif objective.metric in [before.metric for before in objectives[:index]]:
            yield Fault(at, f"objective must not repeat a metric, but {objective.metric} comes twice.")
    if len(objectives) > 1:
        yield from _several_faults(config)


def _several_faults(config: SweepConfig) -> Iterator[Fault]:
    """What is there for one objective only."""
    if config.pruner.name != "none":
        text = f"pruner.name must be none with several objectives, but got {config.pruner.name}."
        yield Fault(
            ("pruner", "name"), text, "A trial that is behind in one may lead in another; Optuna prunes none."
        )
    if config.search.name == "pbt":
        yield Fault(
            ("search", "name"), "search.name: pbt takes one objective.", "Take optuna with tpe or nsga2."
        )
    if config.confirm.start is not None:
        text = "confirm.start must be null with several objectives: a race compares in one."
        yield Fault(("confirm", "start"), text)


def _pruner_faults(config: SweepConfig) -> Iterator[Fault]:
    pruner, train = config.pruner, config.run.train
    if pruner.schedule == "rung":
        yield from _rung_faults(config)
    if pruner.name == "none" or "train.steps" in config.space or "train.eval_every" in config.space:
        return
    steps, first = train.steps, max(pruner.grace_steps, train.eval_every)
    if first >= steps:
        text = f"the pruner could stop no trial: it first sees one at step {first} of {steps}."
        hint = "Lower pruner.grace_steps or run.train.eval_every, or take pruner.name: none."
        yield Fault(("pruner", "grace_steps"), text, hint)


def _rung_faults(config: SweepConfig) -> Iterator[Fault]:
    pruner, every = config.pruner, config.run.train.eval_every
    at = ("pruner", "schedule")
    if pruner.name != "asha":
        text = f"pruner.schedule: rung needs pruner.name: asha, which has rungs, but got {pruner.name}."
        yield Fault(at, text)
    elif "train.eval_every" in config.space or pruner.grace_steps % every:
        text = f"pruner.grace_steps must be a multiple of run.train.eval_every, {every}, for schedule: rung."
        yield Fault(at, text, "A trial is to be judged where its schedule ends, not after it has begun anew.")
    if config.run.optim.restarts:
        yield Fault(at, "pruner.schedule: rung sets run.optim.restarts itself; leave them out.")


def _data_faults(config: SweepConfig) -> Iterator[Fault]:
    root = getattr(config.run.task, "root", None)
    if isinstance(root, Path) and not root.expanduser().is_dir():
        text = f"run.task.root must be the folder of the task's data, but {root} is not a folder."
        yield Fault(("run", "task", "root"), text)


def _first_faults(config: SweepConfig) -> Iterator[Fault]:
    space = Space(config)
    if config.search.trials is not None and len(config.search.first) > config.search.trials:
        count = len(config.search.first)
        text = f"search.first has {count} points, but search.trials is {config.search.trials}."
        yield Fault(("search", "first"), text)
    for index, point in enumerate(config.search.first):
        for text in _misplaced(space, point):
            yield Fault(("search", "first", index), f"search.first[{index}] {text}")


def _misplaced(space: Space, point: Point) -> Iterable[str]:
    wanted = [key for key in space.domains if space.exists(key, point)]
    unknown = [key for key in point if key not in wanted]
    missing = [key for key in wanted if key not in point]
    if unknown:
        yield f"gives {', '.join(unknown)}, which the space does not have there. Keys: {', '.join(wanted)}."
    if missing:
        yield f"must give a value to every key of the space, but lacks {', '.join(missing)}."
    for key in wanted:
        if key in point and not contains(space.domains[key], point[key]):
            where = f"outside its domain, {domain_text(space.domains[key])}"
            yield f"sets {key} to {shown(point[key])}, which is {where}."


def _limit_faults(config: SweepConfig) -> Iterator[Fault]:
    """A limit that sets every proposal aside."""
    limit = config.search.max_parameters
    if limit is None or (fewest := fewest_parameters(config)) <= limit or math.isinf(fewest):
        return
    text = f"search.max_parameters must be at least {fewest:,.0f}, the fewest of any point of the space, "
    yield Fault(("search", "max_parameters"), f"{text}but got {limit:,}.", "Raise it, or widen the space.")
