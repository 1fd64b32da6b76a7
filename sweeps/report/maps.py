"""The objective over two keys of the space: a heat map of a grid, a scatter of a continuous search."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

from sweeps.ledger import TrialView
from sweeps.report.axes import Figure, Frame, legend, svg
from sweeps.report.html import Html, join, tag, title
from sweeps.report.results import Results, describe, thin
from sweeps.report.scales import is_number, scale_of
from sweeps.report.words import axis_label, plain, score, short_names

__all__ = ["map_figure"]

_GRID_SIDE = 12
_DOTS = 2000
_CELL_W, _CELL_H = 90.0, 50.0


def map_figure(results: Results) -> Figure:
    """The objective over learning rate and weight decay, or over what the space has instead."""
    keys = _axes(results)
    if results.shade is None:
        return Figure("The space", None, "No trial has finished, so there is nothing to map.")
    if not keys:
        return Figure("The space", None, "The space varies no number, so there is no map to draw.")
    if len(keys) == 1:
        return _strip(results, keys[0])
    if all(_is_listed(results, key) for key in keys):
        return _heat(results, keys[0], keys[1])
    return _scatter(results, keys[0], keys[1])


def _axes(results: Results) -> list[str]:
    numeric = [
        key for key in results.keys if all(is_number(t.point[key]) for t in results.search if key in t.point)
    ]
    return numeric[:2]


def _is_listed(results: Results, key: str) -> bool:
    """A key with a few values that the space lists, rather than with draws from an interval."""
    few = len({trial.point.get(key) for trial in results.search}) <= _GRID_SIDE
    return few and not results.is_interval(key)


def _heading(*keys: str) -> str:
    return " × ".join(axis_label(key).partition(" (")[0] for key in keys).capitalize()


def _heat(results: Results, x: str, y: str) -> Figure:
    trials = [trial for trial in results.search if x in trial.point and y in trial.point]
    cells: dict[tuple[object, object], list[TrialView]] = defaultdict(list)
    for trial in trials:
        cells[trial.point[x], trial.point[y]].append(trial)
    columns, rows = (scale_of((t.point[key] for t in trials), ordinal_up_to=_GRID_SIDE) for key in (x, y))
    frame = Frame(92, 8, _CELL_W * len(columns.order), _CELL_H * len(rows.order), columns, rows)
    drawn = join(_cell(results, frame, cell, members) for cell, members in cells.items())
    label = f"Heat map of {results.metric} over {x} and {y}"
    drawing = _with_legend(results, frame, label, frame.axes(axis_label(x), axis_label(y)), drawn)
    others = [plain(name) for key, name in short_names(results.keys).items() if key not in (x, y)]
    over = "seeds" if not others else f"seeds and {', '.join(others)}"
    caption = (
        f"Each cell: mean of {results.metric} over its finished trials of the search ({over}). "
        f"A dashed cell has only stopped trials; its value is {_stopped(results)}. "
        "The ring marks the best configuration."
    )
    return Figure(_heading(x, y), drawing, caption)


def _stopped(results: Results) -> str:
    return "that of a rung" if results.annealed else f"a bound ({results.bound.strip()})"


def _mean(trials: Sequence[TrialView]) -> float | None:
    values = [t.objective for t in trials if t.state == "finished" and is_number(t.objective)]
    return fmean(value for value in values if value is not None) if values else None


def _cell(results: Results, frame: Frame, cell: tuple[object, object], trials: list[TrialView]) -> Html:
    mean = _mean(trials)
    best = any(trial.fingerprint in results.chosen for trial in trials)
    center_x, center_y = frame.at(*cell)
    x, y = center_x - _CELL_W / 2 + 1.5, center_y - _CELL_H / 2 + 1.5
    box: dict[str, object] = {"x": x, "y": y, "width": _CELL_W - 3, "height": _CELL_H - 3, "rx": 4}
    words = title("\n".join(describe(results, trial) for trial in trials[:12]))
    if mean is None or results.shade is None:
        text = _without_result(results, trials)
        rect, ink = tag("rect", **box, class_="empty"), "tick"
    else:
        text, shade = score(mean), results.shade.of_value(mean)
        rect, ink = tag("rect", **box, class_=f"v{shade} fill"), f"v{shade} ink"
    ring = (
        tag("rect", x=x - 1.5, y=y - 1.5, width=_CELL_W, height=_CELL_H, rx=5, class_="ring") if best else ""
    )
    label = tag("text", text, x=center_x, y=center_y + 4.5, class_=f"{ink} cell", text_anchor="middle")
    return tag("g", words, rect, label, ring)


def _without_result(results: Results, trials: list[TrialView]) -> str:
    best = results.best_of(trial for trial in trials if trial.state == "pruned")
    if best is not None:
        return results.bound + score(best.objective)
    return "failed" if all(trial.state == "failed" for trial in trials) else "not over"


def _scatter(results: Results, x: str, y: str) -> Figure:
    trials = [trial for trial in _drawable(results) if x in trial.point and y in trial.point]
    frame = Frame(92, 12, 448, 300, results.scale(x, trials), results.scale(y, trials))
    dots = [(trial, frame.at(trial.point[x], trial.point[y])) for trial in trials]
    label = f"Scatter of {results.metric} over {x} and {y}"
    axes = frame.axes(axis_label(x), axis_label(y))
    drawing = _with_legend(results, frame, label, axes, _dots(results, dots))
    return Figure(_heading(x, y), drawing, _dots_caption(results, len(trials)))


def _strip(results: Results, x: str) -> Figure:
    trials = [trial for trial in _drawable(results) if x in trial.point and is_number(trial.objective)]
    scales = results.scale(x, trials), scale_of([trial.objective for trial in trials], log=False)
    frame = Frame(92, 12, 448, 300, *scales)
    dots = [(trial, frame.at(trial.point[x], trial.objective)) for trial in trials]
    label = f"Scatter of {results.metric} over {x}"
    axes = frame.axes(axis_label(x), results.metric)
    drawing = _with_legend(results, frame, label, axes, _dots(results, dots))
    return Figure(_heading(x), drawing, _dots_caption(results, len(trials)))


def _drawable(results: Results) -> list[TrialView]:
    """Trials of the search that ended: the best configuration, the others by rank, then those cut short."""
    finished = [trial for trial in results.chosen_first if trial.stage == "search"]
    return finished + [trial for trial in results.search if trial.state in ("pruned", "failed")]


def _dots(results: Results, dots: list[tuple[TrialView, tuple[float, float]]]) -> Html:
    """The best on top; smaller dots where there are many."""
    shown = thin(dots, _DOTS, keep=100)
    radius = 5.5 if len(shown) <= 150 else 4.0 if len(shown) <= 600 else 2.8
    return join(_dot(results, trial, at, radius) for trial, at in reversed(shown))


def _dot(results: Results, trial: TrialView, at: tuple[float, float], radius: float) -> Html:
    (x, y), words = at, title(describe(results, trial))
    if trial.state == "failed":
        arm = 0.8 * radius
        left, right, top, bottom = x - arm, x + arm, y - arm, y + arm
        d = f"M{left:.1f} {top:.1f}L{right:.1f} {bottom:.1f}M{right:.1f} {top:.1f}L{left:.1f} {bottom:.1f}"
        return tag("path", words, d=d, class_="cross")
    if trial.state == "pruned" or results.shade is None or trial.objective is None:
        return tag("circle", words, cx=x, cy=y, r=0.7 * radius, class_="hollow")
    shade = results.shade.of_value(trial.objective)
    dot = tag("circle", words, cx=x, cy=y, r=radius, class_=f"v{shade} fill dot")
    ring = tag("circle", cx=x, cy=y, r=10, class_="ring")
    return join([ring, dot]) if trial.fingerprint in results.chosen else dot


def _dots_caption(results: Results, count: int) -> str:
    part = f"{_DOTS} of {count} trials are drawn. " if count > _DOTS else ""
    return (
        f"{part}One dot for each trial of the search, coloured by {results.metric}; hollow: stopped early; "
        "cross: failed; ring: the best configuration."
    )


def _with_legend(results: Results, frame: Frame, label: str, *children: str) -> Html:
    assert results.shade is not None
    right, bottom = frame.left + frame.width, frame.top + frame.height
    width = max(right + 20, 400.0)
    ends = score(results.shade.worst), score(results.shade.best)
    key = legend(width / 2 - 50, bottom + 58, f"worse  {ends[0]}", f"{ends[1]}  better")
    return svg(width, bottom + 78, label, *children, key)
