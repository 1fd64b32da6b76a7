"""The answer of a sweep: the best configuration over seeds, how sure that is, and what is as good.

With confirmation, only the fresh seeds count: the values that made a configuration stand out in the
search are partly luck. An interval over seeds does not cover which examples the validation split
happens to hold, since all trials share that split.

Ties in the mean are broken by fewer trainable parameters, then by the lower validation loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal

from replora.config import RunConfig
from replora.errors import ConfigError
from sweeps.groups import Group, groups_of, ranked
from sweeps.interval import Difference, Interval, difference, holm, t_interval, wilson
from sweeps.ledger import SweepView, TrialView
from sweeps.objective import VALIDATION_EXAMPLES, Objective, parameters_of
from sweeps.space import value_at

__all__ = ["Contender", "Selection", "select"]

Verdict = Literal["best", "worse", "not-distinguishable"]


@dataclass(frozen=True)
class Contender:
    """A configuration that could be the best one.

    Attributes:
        sweep: Name of the sweep it comes from.
        values: Objective by seed.
        mean: Of the values.
        interval: Of the mean; None where one seed gives none.
        parameters: Trainable, without the head; None for a backbone of unknown shape.
        val_loss: Mean over the same trials; NaN where it was not reported.
        trials: The trials that `values` come from.
        verdict: Compared with the best.
        words: The verdict for people.
        gap: Interval of how far the best is ahead (0 or more is in the best's favour), where tested.
    """

    sweep: str
    group: Group
    values: dict[int, float]
    mean: float
    interval: Interval | None
    parameters: int | None
    val_loss: float
    trials: tuple[TrialView, ...]
    verdict: Verdict = "best"
    words: str = "best"
    gap: tuple[float, float] | None = None


@dataclass(frozen=True)
class Selection:
    """The best configuration and how all that were compared relate to it.

    Attributes:
        stage: Whose values were compared: those of the search, or of the confirmation.
        contenders: The best first.
        note: What the comparison rests on, in words.
    """

    objective: Objective
    stage: Literal["search", "confirm"]
    contenders: tuple[Contender, ...]
    note: str

    @property
    def best(self) -> Contender | None:
        """The winner; None if no configuration was trained to its end."""
        return self.contenders[0] if self.contenders else None

    @property
    def rivals(self) -> tuple[Contender, ...]:
        """Those that this sweep cannot tell from the best."""
        return tuple(item for item in self.contenders if item.verdict == "not-distinguishable")


def select(views: SweepView | Sequence[SweepView]) -> Selection:
    """The best configuration of one sweep, or of several with the same task, data and objective.

    Raises:
        ConfigError: If the sweeps cannot be compared.
    """
    all_views = [views] if isinstance(views, SweepView) else list(views)
    objective = Objective(all_views[0].metric, all_views[0].direction)
    _check_comparable(all_views)
    pools = [(view, confirmed(view)) for view in all_views]
    stage: Literal["search", "confirm"] = "confirm" if any(pool for _, pool in pools) else "search"
    found = [
        _contender(view, group, stage)
        for view, pool in pools
        for group in (pool if stage == "confirm" else ranked(view))
    ]
    found.sort(key=lambda item: _order(item, objective))
    return Selection(objective, stage, _judged(found, objective), _note(found, stage))


def confirmed(view: SweepView) -> list[Group]:
    """Configurations with fresh seeds, once all that were to be confirmed have ended."""
    groups = [group for group in groups_of(view) if group.confirm]
    if any(not trial.ended for group in groups for trial in group.confirm):
        return []
    return [group for group in groups if group.confirmed]


def _contender(view: SweepView, group: Group, stage: Literal["search", "confirm"]) -> Contender:
    trials = tuple(getattr(group, stage))
    values = {trial.seed: trial.objective for trial in trials if trial.objective is not None}
    run = RunConfig.model_validate({**group.config, "seed": trials[0].seed})
    return Contender(
        sweep=view.name,
        group=group,
        values=values,
        mean=fmean(values.values()),
        interval=_interval(view, run, list(values.values())),
        parameters=parameters_of(run),
        val_loss=fmean(trial.metrics.get("val_loss", math.nan) for trial in trials),
        trials=trials,
    )


def _interval(view: SweepView, run: RunConfig, values: list[float]) -> Interval | None:
    fraction = view.metric == "accuracy"
    if len(values) > 1:
        found = t_interval(values)
        return replace(found, low=max(0.0, found.low), high=min(1.0, found.high)) if fraction else found
    examples = VALIDATION_EXAMPLES.get(run.task.name)
    return wilson(values[0], examples) if fraction and examples else None


def _order(item: Contender, objective: Objective) -> tuple[float, float, float]:
    loss = math.inf if math.isnan(item.val_loss) else item.val_loss
    parameters = math.inf if item.parameters is None else item.parameters
    return -objective.better(item.mean), parameters, loss


def _judged(found: Sequence[Contender], objective: Objective) -> tuple[Contender, ...]:
    """The contenders with their verdicts against the first of them."""
    if not found:
        return ()
    best, *others = found
    ahead = _signed(best, objective)
    tests = [difference(ahead, _signed(item, objective)) for item in others]
    decided = iter(holm([test.p for test in tests if test is not None]))
    judged = [
        _verdict(best, item, test, None if test is None else next(decided))
        for item, test in zip(others, tests, strict=True)
    ]
    return (best, *judged)


def _signed(item: Contender, objective: Objective) -> dict[int, float]:
    return {seed: objective.better(value) for seed, value in item.values.items()}


def _verdict(
    best: Contender, item: Contender, test: Difference | None, decided: tuple[bool, float] | None
) -> Contender:
    if test is None or decided is None:
        single = min(len(best.values), len(item.values)) < 2
        reason = "one seed" if single else "the seeds show no spread"
        return _with(item, "not-distinguishable", f"{reason}: not distinguishable by this sweep", None)
    rejected, level = decided
    how = f"{'paired by seed' if test.paired else 'unpaired'}, Holm-corrected"
    if rejected:
        return _with(item, "worse", f"worse than the best ({how})", test.interval(level))
    return _with(
        item, "not-distinguishable", f"not distinguishable from the best ({how})", test.interval(level)
    )


def _with(item: Contender, verdict: Verdict, words: str, gap: tuple[float, float] | None) -> Contender:
    return replace(item, verdict=verdict, words=words, gap=gap)


def _note(found: Sequence[Contender], stage: str) -> str:
    if not found:
        return "No configuration was trained to its end with every seed."
    seeds = max(len(item.values) for item in found)
    if stage == "confirm":
        return (
            f"Means over {seeds} fresh seeds that the search did not use; values of the search do not count."
        )
    if seeds > 1:
        return f"Means over the {seeds} seeds of the search; the best of many is partly luck."
    return (
        "One seed for each configuration: the best of many is partly luck. "
        "Set confirm.top and confirm.seeds to find out which differences are real."
    )


def _check_comparable(views: Sequence[SweepView]) -> None:
    first, faults = views[0], []
    for view in views[1:]:
        for what in ("metric", "direction", "data"):
            one, other = getattr(first, what), getattr(view, what)
            if one and other and one != other:
                faults.append(f"{what}: {first.name} has {one}, {view.name} has {other}")
        if _task(first) != _task(view):
            faults.append(f"task: {first.name} has {_task(first)}, {view.name} has {_task(view)}")
    if faults:
        listed = "".join(f"\n  {fault}" for fault in faults)
        raise ConfigError(f"these sweeps cannot be compared:{listed}")


def _task(view: SweepView) -> str:
    return str(value_at(view.config, "run.task.name"))
