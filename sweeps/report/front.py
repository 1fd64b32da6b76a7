"""The Pareto front of several objectives: every configuration as a dot, the front as a staircase."""

from __future__ import annotations

import itertools

from sweeps.best import Contender
from sweeps.pareto import means_of
from sweeps.report.axes import Figure, Frame, svg
from sweeps.report.html import Html, join, scroll, tag, title
from sweeps.report.results import Results, thin
from sweeps.report.scales import is_number, scale_of
from sweeps.report.words import amount, in_order, number, objective_label, plain, point_text, short_names

__all__ = ["front_figure", "front_table"]

_HEADING = "Pareto front"
_DOTS = 2000


def front_figure(results: Results) -> Figure:
    """The second objective across, the first one up; for sweeps of several objectives."""
    objectives, front = results.view.objectives, results.selection.front
    items = [item for item in results.selection.contenders if all(map(is_number, item.objectives))]
    if not front or not items:
        return Figure(_HEADING, None, "No configuration was trained to its end yet.")
    kept = {id(item) for item in front}
    unconfirmed = _unconfirmed(results)
    shown = thin(sorted(items, key=lambda item: id(item) not in kept), _DOTS, keep=len(front))
    values = [*(item.objectives for item in shown), *unconfirmed]
    across, up = ([each[index] for each in values] for index in (1, 0))
    frame = Frame(92, 14, 448, 300, scale_of(across), scale_of(up, log=False))
    axes = frame.axes(objective_label(objectives[1]), objective_label(objectives[0]))
    faint = [tag("circle", cx=x, cy=y, r=2, class_="hollow") for x, y in _places(frame, unconfirmed)]
    dots = join([*faint, *(_dot(results, frame, item, id(item) in kept) for item in reversed(shown))])
    label = f"{objectives[0].metric} against {objectives[1].metric}, one dot for each configuration"
    drawing = svg(560, 372, label, axes, _stairs(frame, front), dots)
    return Figure(_HEADING, drawing, _caption(results, len(shown), len(items)))


def front_table(results: Results) -> Html:
    """The front's configurations with all their objectives, the best in the first one first."""
    names = short_names(results.keys)
    metrics = [plain(objective.metric, 40) for objective in results.view.objectives]
    heads = [*metrics, "chosen", "seeds", *(plain(names[key], 40) for key in in_order(results.keys))]
    head = tag("thead", tag("tr", *(tag("th", text, scope="col") for text in heads)))
    body = tag("tbody", *(_row(results, item) for item in results.selection.front))
    return scroll("Pareto front", tag("table", head, body))


def _unconfirmed(results: Results) -> list[tuple[float, ...]]:
    """Where configurations of the search lie that got no fresh seeds, if others did."""
    if results.selection.stage != "confirm":
        return []
    confirmed = {trial.fingerprint for item in results.selection.contenders for trial in item.group.search}
    trials = [t for t in results.search if t.state == "finished" and t.fingerprint not in confirmed]
    return thin([means_of([trial], results.view.objectives) for trial in trials], _DOTS, keep=0)


def _places(frame: Frame, values: list[tuple[float, ...]]) -> list[tuple[float, float]]:
    return [frame.at(each[1], each[0]) for each in values]


def _row(results: Results, item: Contender) -> Html:
    best = item is results.selection.best
    return tag(
        "tr",
        *(tag("td", amount(value)) for value in item.objectives),
        tag("td", plain(item.words, 200) if best else "", class_="best"),
        tag("td", str(len(item.values))),
        *(tag("td", number(item.group.point.get(key, "–"))) for key in in_order(results.keys)),
    )


def _dot(results: Results, frame: Frame, item: Contender, on_front: bool) -> Html:
    x, y = frame.at(item.objectives[1], item.objectives[0])
    pairs = zip(results.view.objectives, item.objectives, strict=True)
    values = ", ".join(f"{plain(objective.metric, 40)} {amount(value)}" for objective, value in pairs)
    words = title(f"{values}; {point_text(item.group.point)} ({item.words})")
    if not on_front:
        return tag("circle", words, cx=x, cy=y, r=3.5, class_="hollow")
    dot = tag("circle", words, cx=x, cy=y, r=5.5, class_="mean best")
    return (
        join([tag("circle", cx=x, cy=y, r=10, class_="ring"), dot]) if item is results.selection.best else dot
    )


def _stairs(frame: Frame, front: tuple[Contender, ...]) -> Html:
    """Edge of what the front dominates, where there are two objectives."""
    if len(front[0].objectives) != 2 or len(front) < 2:
        return Html("")
    corners = [frame.at(item.objectives[1], item.objectives[0]) for item in front]
    d = f"M{corners[0][0]:.1f} {corners[0][1]:.1f}"
    for (x, _), (next_x, next_y) in itertools.pairwise(corners):
        d += f"L{x:.1f} {next_y:.1f}L{next_x:.1f} {next_y:.1f}"
    return tag("path", d=d, class_="curve best")


def _caption(results: Results, shown: int, total: int) -> str:
    parts = [f"{shown} of {total} configurations are drawn."] if shown < total else []
    parts.append("Filled: no other configuration is at least as good in every objective. Hollow: dominated.")
    if results.selection.stage == "confirm":
        parts.append("Small: other configurations, with the values of the search, which had no fresh seeds.")
    parts.append("The ring marks the chosen one; another is chosen with replora best --where.")
    if len(results.view.objectives) > 2:
        parts.append("Only the first two objectives are drawn; the table has all.")
    return " ".join(parts)
