"""The answer of a sweep: the best configuration over seeds, how sure that is, and what is as good.

With confirmation, only the fresh seeds count: the values that made a configuration stand out in the
search are partly luck. An interval over seeds does not cover which examples the validation split
happens to hold, since all trials share that split.

Ties in the mean are broken by fewer trainable parameters, then by the lower validation loss. With several
objectives the answer is a Pareto front of means, and the best is its knee unless `choose` names another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal

from replora.config import RunConfig
from replora.errors import ConfigError
from sweeps.config import ConfirmConfig
from sweeps.groups import Group, groups_of, ranked
from sweeps.interval import LEVEL, Difference, Interval, difference, holm, t_interval, wilson
from sweeps.ledger import SweepView, TrialView
from sweeps.objective import VALIDATION_EXAMPLES, Objective, parameters_of
from sweeps.pareto import knee, means_of, non_dominated, to_confirm
from sweeps.race import looks_of, run_race
from sweeps.space import value_at

__all__ = ["Contender", "Selection", "choose", "select"]

Verdict = Literal["best", "worse", "not-distinguishable", "front", "dominated"]


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
        objectives: Means of all objectives over the same trials.
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
    objectives: tuple[float, ...] = ()


@dataclass(frozen=True)
class Selection:
    """The best configuration and how all that were compared relate to it.

    Attributes:
        stage: Whose values were compared: those of the search, or of the confirmation.
        contenders: The best first.
        note: What the comparison rests on, in words.
        objectives: All of them, the first one first.
    """

    objective: Objective
    stage: Literal["search", "confirm"]
    contenders: tuple[Contender, ...]
    note: str
    objectives: tuple[Objective, ...] = ()

    @property
    def best(self) -> Contender | None:
        """The winner; None if no configuration was trained to its end."""
        return self.contenders[0] if self.contenders else None

    @property
    def rivals(self) -> tuple[Contender, ...]:
        """Those that this sweep cannot tell from the best."""
        return tuple(item for item in self.contenders if item.verdict == "not-distinguishable")

    @property
    def front(self) -> tuple[Contender, ...]:
        """With several objectives, those that no other one beats, best in the first objective first."""
        if len(self.objectives) < 2:
            return ()
        found = [item for item in self.contenders if item.verdict in ("best", "front")]
        values = [item.objectives for item in found]
        return tuple(found[index] for index in non_dominated(values, self.objectives))


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
    objectives = all_views[0].objectives
    if len(objectives) > 1:
        return Selection(
            objective, stage, _on_front(found, objectives), _front_note(found, stage), objectives
        )
    return Selection(objective, stage, _raced(pools, found, objective), _note(found, stage), objectives)


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
        interval=_interval(view, run, list(values.values()), stage),
        parameters=parameters_of(run),
        val_loss=fmean(trial.metrics.get("val_loss", math.nan) for trial in trials),
        trials=trials,
        objectives=means_of(trials, view.objectives),
    )


def _interval(view: SweepView, run: RunConfig, values: list[float], stage: str) -> Interval | None:
    fraction = view.metric == "accuracy"
    if len(values) > 1:
        found = t_interval(values, looks=_looks(view) if stage == "confirm" else 1)
        return replace(found, low=max(0.0, found.low), high=min(1.0, found.high)) if fraction else found
    examples = VALIDATION_EXAMPLES.get(run.task.name)
    return wilson(values[0], examples) if fraction and examples else None


def _order(item: Contender, objective: Objective) -> tuple[float, float, float]:
    loss = math.inf if math.isnan(item.val_loss) else item.val_loss
    parameters = math.inf if item.parameters is None else item.parameters
    return -objective.better(item.mean), parameters, loss


def _looks(view: SweepView) -> int:
    """How often a race looked at the results, at most."""
    return looks_of(ConfirmConfig.model_validate(view.config.get("confirm", {})))


def _raced(
    pools: Sequence[tuple[SweepView, list[Group]]], found: Sequence[Contender], objective: Objective
) -> tuple[Contender, ...]:
    """The contenders with their verdicts; whoever a race has dropped is behind all that it has not."""
    out: dict[tuple[str, int], str] = {}
    for view, pool in pools:
        confirm = ConfirmConfig.model_validate(view.config.get("confirm", {}))
        if pool and confirm.start is not None:
            race = run_race(to_confirm(view, confirm.top), confirm, objective)
            out |= {(view.name, number): words for number, words in race.dropped.items()}
    inside = [item for item in found if (item.sweep, item.group.number) not in out]
    judged = _judged(inside, objective, looks=max(_looks(view) for view, _ in pools))
    dropped = [item for item in found if (item.sweep, item.group.number) in out]
    return judged + tuple(
        replace(item, verdict="worse", words=out[item.sweep, item.group.number]) for item in dropped
    )


def _on_front(found: Sequence[Contender], objectives: Sequence[Objective]) -> tuple[Contender, ...]:
    """The knee of the Pareto front, the rest of the front, and what is dominated."""
    if not found:
        return ()
    front = [found[index] for index in non_dominated([item.objectives for item in found], objectives)]
    best = front[knee([item.objectives for item in front], objectives)]
    others = [
        replace(item, verdict="front", words="on the Pareto front") for item in front if item is not best
    ]
    on_front = {id(item) for item in front}
    rest = [
        replace(item, verdict="dominated", words="dominated") for item in found if id(item) not in on_front
    ]
    return (replace(best, words="the knee of the Pareto front"), *others, *rest)


def choose(selection: Selection, index: int, words: str) -> Selection:
    """The same front with another of its points as the best.

    Args:
        selection: With several objectives.
        index: In `selection.front`.
        words: Why this one.
    """
    chosen = selection.front[index]
    others = [
        replace(item, verdict="front", words="on the Pareto front") if item.verdict == "best" else item
        for item in selection.contenders
        if item is not chosen
    ]
    return replace(selection, contenders=(replace(chosen, verdict="best", words=words), *others))


def _judged(found: Sequence[Contender], objective: Objective, looks: int = 1) -> tuple[Contender, ...]:
    """The contenders with their verdicts against the first of them."""
    if not found:
        return ()
    best, *others = found
    ahead = _signed(best, objective)
    tests = [difference(ahead, _signed(item, objective)) for item in others]
    decided = iter(holm([test.p for test in tests if test is not None], (1 - LEVEL) / looks))
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


def _front_note(found: Sequence[Contender], stage: str) -> str:
    if not found:
        return "No configuration was trained to its end with every seed."
    seeds = max(len(item.values) for item in found)
    which = "fresh seeds that the search did not use" if stage == "confirm" else "seeds of the search"
    return (
        f"A Pareto front of means over {seeds} {which}; neighbours on it may differ by luck. "
        "The knee is nearest to the best value of every objective at once, each scaled over the front."
    )


def _note(found: Sequence[Contender], stage: str) -> str:
    if not found:
        return "No configuration was trained to its end with every seed."
    seeds = max(len(item.values) for item in found)
    if stage == "confirm":
        least = min(len(item.values) for item in found)
        count = f"{seeds}" if least == seeds else f"{least} to {seeds}"
        more = "" if least == seeds else " (more for those that may be the best)"
        return (
            f"Means over {count} fresh seeds{more} that the search did not use; "
            "values of the search do not count."
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
        if first.objectives[1:] != view.objectives[1:]:
            names = [" and ".join(each.metric for each in seen.objectives) for seen in (first, view)]
            faults.append(f"objectives: {first.name} has {names[0]}, {view.name} has {names[1]}")
        if _task(first) != _task(view):
            faults.append(f"task: {first.name} has {_task(first)}, {view.name} has {_task(view)}")
    if faults:
        listed = "".join(f"\n  {fault}" for fault in faults)
        raise ConfigError(f"these sweeps cannot be compared:{listed}")


def _task(view: SweepView) -> str:
    return str(value_at(view.config, "run.task.name"))
