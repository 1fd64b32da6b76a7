"""What a person reads in the terminal when a sweep is over."""

from __future__ import annotations

import shlex
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from sweeps.best import Contender, Selection
from sweeps.ledger import SweepView, TrialView
from sweeps.report.answer import front_text, rivals_text
from sweeps.report.page import REPORT_NAME
from sweeps.report.results import failure_groups
from sweeps.report.search_words import final_text, phases_text, schedule_text, skipped_text, warm_texts
from sweeps.report.words import amount, counted, duration, plain, point_text, score
from sweeps.tracking import resolve_uri

__all__ = ["summary"]

_RIVALS = 5
_FRONT = 12
_REASONS = 5


def summary(view: SweepView, selection: Selection, folder: Path) -> str:
    """A short plain text: the best configuration, what is as good, what went wrong, where things are.

    Args:
        view: The sweep, over or not.
        selection: What `sweeps.best.select` says of it.
        folder: The sweep's folder.
    """
    return "\n".join(
        [_head(view), "", *_best(view, selection), *_losses(view), "", *_places(view, selection, folder)]
    )


def _head(view: SweepView) -> str:
    counts: Counter[str] = Counter(trial.state for trial in view.trials.values())
    states = ("finished", "pruned", "failed", "running", "paused", "asked")
    kinds = ", ".join(f"{counts[state]} {state}" for state in states if counts[state])
    state = view.closed or "not over"
    took = duration(view.updated - view.started)
    return (
        f"{plain(view.name)}: {state}, {counted(len(view.trials), 'trial')} in {took} ({kinds or 'none yet'})"
    )


def _best(view: SweepView, selection: Selection) -> Iterator[str]:
    best = selection.best
    if best is None:
        yield f"no best configuration: {selection.note}"
        return
    yield f"best configuration   {plain(view.metric)} {_value(best)}"
    yield f"  {point_text(best.group.point)}   ({_numbers(best.trials)})"
    if copies := phases_text(view, best.group.search[0] if best.group.search else best.trials[0]):
        yield from textwrap.wrap(copies, 100, initial_indent="  ", subsequent_indent="  ")
    if selection.front:
        yield from _front(selection)
        return
    yield rivals_text(selection)
    for rival in selection.rivals[:_RIVALS]:
        yield f"  {_value(rival, basis=False)}   {point_text(rival.group.point)}"
    if len(selection.rivals) > _RIVALS:
        yield f"  and {len(selection.rivals) - _RIVALS} more"
    yield from textwrap.wrap(selection.note, 100)


def _front(selection: Selection) -> Iterator[str]:
    yield front_text(selection)
    for item in selection.front[:_FRONT]:
        pairs = zip(selection.objectives, item.objectives, strict=True)
        values = "  ".join(f"{plain(objective.metric)} {amount(value)}" for objective, value in pairs)
        yield f"{'*' if item is selection.best else ' '} {values}   {point_text(item.group.point)}"
    if len(selection.front) > _FRONT:
        yield f"  and {len(selection.front) - _FRONT} more"
    yield from textwrap.wrap(selection.note, 100)


def _value(item: Contender, *, basis: bool = True) -> str:
    found = item.interval
    if found is None:
        return f"{score(item.mean)} (no interval)"
    words = f"{score(item.mean)}, {found.level:.0%} interval {score(found.low)} to {score(found.high)}"
    return f"{words} ({found.basis})" if basis else words


def _numbers(trials: Sequence[TrialView]) -> str:
    """`trial 3`, or `trials 3, 5`: the first eight."""
    shown = ", ".join(str(trial.number) for trial in trials[:8])
    return f"trial{'s' if len(trials) > 1 else ''} {shown}{', ...' if len(trials) > 8 else ''}"


def _losses(view: SweepView) -> Iterator[str]:
    groups = failure_groups(view.trials.values())
    for reason, trials in groups[:_REASONS]:
        yield f"{len(trials)} failed: {plain(reason, 160)} ({_numbers(trials)})"
    hidden = sum(len(trials) for _, trials in groups[_REASONS:])
    if hidden:
        yield f"{hidden} failed for other reasons: see the report"
    pruned = sum(trial.state == "pruned" for trial in view.trials.values())
    copies = sum(bool(trial.parent) for trial in view.trials.values())
    if copies:
        words = counted(copies, "copy of a better trial", "copies of better trials")
        yield f"{pruned} pruned: replaced by {words}"
    elif pruned and view.config.get("pruner", {}).get("schedule") == "rung":
        yield f"{pruned} pruned: stopped at a rung, with a schedule that ended there, and were not compared"
    elif pruned:
        bound = "lower" if view.direction == "maximize" else "upper"
        yield f"{pruned} pruned: stopped early, so their values are {bound} bounds and were not compared"
    if text := schedule_text(view):
        yield f"schedule: {text}"
    if text := skipped_text(view):
        yield text
    yield from warm_texts(view)
    yield from (f"stopped asking: {reason}" for reason in dict.fromkeys(view.spent.values()))


def _places(view: SweepView, selection: Selection, folder: Path) -> Iterator[str]:
    best = folder / "best.yaml"
    if selection.best is not None and view.closed is not None:
        yield f"best      {best}"
    yield f"report    {folder / REPORT_NAME}"
    yield f"mlflow    {resolve_uri(folder, view.config.get('tracking', {}).get('uri'))}"
    if view.closed is None:
        yield f"next      replora resume {shlex.quote(str(folder))}"
    elif selection.best is not None and (final := final_text(selection.best.group.search)):
        yield f"final     {plain(final)}"
    elif selection.best is not None:
        yield f"next      replora train {shlex.quote(str(best))}"
    else:
        yield "next      read the reasons in the report, change the space or the run, and sweep again"
