"""Which trials and which keys the report is about, and what their objectives are."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from sweeps.best import Selection, select
from sweeps.ledger import SweepView, TrialView
from sweeps.report.scales import Scale, Shade, scale_of
from sweeps.report.words import better, in_order, objective_label, plain, point_text, score

_INTERVALS = ("log_uniform", "log_integers", "uniform", "integers")
Item = TypeVar("Item")

__all__ = ["Results", "describe", "failure_groups", "thin"]


@dataclass(frozen=True)
class Results:
    """A sweep's trials, sorted out once for all parts of the report.

    Attributes:
        view: The whole sweep.
        search: Trials of the search.
        finished: Trials of search and confirmation that ran to their end, the best first.
        keys: Keys of the space that took more than one value, learning rate and weight decay first.
        shade: Colours of objectives; None while nothing has finished.
        selection: The best configuration and those that it was compared with.
        chosen: Fingerprints of the best configuration's trials.
    """

    view: SweepView
    search: tuple[TrialView, ...]
    finished: tuple[TrialView, ...]
    keys: tuple[str, ...]
    shade: Shade | None
    selection: Selection
    chosen: frozenset[str]

    @classmethod
    def of(cls, view: SweepView, selection: Selection | None = None) -> Results:
        """The results that a ledger holds; `selection` is that of the view, where it is known."""
        selection = selection or select(view)
        best = selection.best
        chosen = (
            frozenset(t.fingerprint for t in best.group.search + best.group.confirm) if best else frozenset()
        )
        search = tuple(trial for trial in view.trials.values() if trial.stage == "search")
        done = [t for t in view.trials.values() if t.state == "finished" and _valid(t.objective)]
        done.sort(key=lambda trial: trial.objective or 0.0, reverse=view.direction == "maximize")
        values = [trial.objective for trial in done if trial.objective is not None]
        shade = Shade.of(values, view.direction) if values else None
        return cls(view, search, tuple(done), _varied(search), shade, selection, chosen)

    @property
    def metric(self) -> str:
        """The objective's name with its direction, as an axis label."""
        return objective_label(self.view.objectives[0])

    @property
    def annealed(self) -> bool:
        """Whether pruned trials came to the end of their schedule, that of their rung."""
        return bool(self.view.config.get("pruner", {}).get("schedule") == "rung")

    @property
    def bound(self) -> str:
        """The sign before a pruned trial's value: it was stopped before it could get better."""
        if self.annealed:
            return ""
        return "≥ " if self.view.direction == "maximize" else "≤ "

    @property
    def chosen_text(self) -> str:
        """The best configuration's trials in words; empty where there is none."""
        numbers = [str(t.number) for t in self.view.trials.values() if t.fingerprint in self.chosen]
        return f"{'trial' if len(numbers) == 1 else 'trials'} {', '.join(numbers)}" if numbers else ""

    @property
    def chosen_first(self) -> list[TrialView]:
        """Finished trials, those of the best configuration before all others."""
        return sorted(self.finished, key=lambda trial: trial.fingerprint not in self.chosen)

    def is_interval(self, key: str) -> bool:
        """Whether the space draws a key from an interval."""
        return any(self.view.config.get("space", {}).get(key, {}).get(kind) for kind in _INTERVALS)

    def scale(self, key: str, trials: Sequence[TrialView], *, ordinal_up_to: int = 0) -> Scale:
        """The axis of a key: all of its domain where that is an interval, else the values of some trials."""
        domain = self.view.config.get("space", {}).get(key, {})
        log = next(("log" in kind for kind in _INTERVALS if domain.get(kind)), None)
        values = [trial.point[key] for trial in trials if key in trial.point]
        if log is not None and len(set(values)) > ordinal_up_to:
            values += next(domain[kind] for kind in _INTERVALS if domain.get(kind))
        return scale_of(values, ordinal_up_to=ordinal_up_to, log=log)

    def best_of(self, trials: Iterable[TrialView]) -> TrialView | None:
        """The trial with the best objective of some, whatever their state."""
        best: TrialView | None = None
        for trial in trials:
            if better(trial.objective, best.objective if best else None, self.view.direction):
                best = trial
        return best


def _valid(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _varied(trials: tuple[TrialView, ...]) -> tuple[str, ...]:
    values: dict[str, set[object]] = defaultdict(set)
    holders: Counter[str] = Counter()
    for trial in trials:
        holders.update(trial.point.keys())
        for key, value in trial.point.items():
            values[key].add(value)
    varied = [key for key in values if len(values[key]) > 1 or holders[key] < len(trials)]
    return tuple(in_order(varied))


def describe(results: Results, trial: TrialView) -> str:
    """One line about a trial, for the pointer that rests on it."""
    value = "no result" if trial.objective is None else f"{results.view.metric} {score(trial.objective)}"
    bound = results.bound if trial.state == "pruned" and trial.objective is not None else ""
    return plain(
        f"trial {trial.number}, {trial.state}: {bound}{value}; {point_text(trial.point)}, seed {trial.seed}"
    )


def failure_groups(trials: Iterable[TrialView]) -> list[tuple[str, list[TrialView]]]:
    """Failed trials by kind and reason, the most frequent first."""
    groups: dict[str, list[TrialView]] = defaultdict(list)
    for trial in trials:
        if trial.state == "failed":
            reason = plain(trial.reason or "no reason recorded")
            groups[f"{trial.kind}: {reason}" if trial.kind else reason].append(trial)
    return sorted(groups.items(), key=lambda item: -len(item[1]))


def thin(items: list[Item], limit: int, keep: int) -> list[Item]:
    """At most `limit` of some items: the first `keep`, and an even choice of the others."""
    if len(items) <= limit:
        return items
    rest, room = items[keep:], limit - keep
    return items[:keep] + [rest[index * len(rest) // room] for index in range(room)]
