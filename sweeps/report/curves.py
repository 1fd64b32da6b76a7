"""Validation curves: the objective of every trial over its steps, the best one bold."""

from __future__ import annotations

from statistics import quantiles

from sweeps.ledger import TrialView
from sweeps.report.axes import Figure, Frame, svg
from sweeps.report.html import Html, join, tag, title
from sweeps.report.results import Results, describe, thin
from sweeps.report.scales import is_number, scale_of

__all__ = ["curves_figure"]

_HEADING = "Validation curves"
_CURVES = 250
_POINTS = 60
Curve = list[tuple[int, float]]


def curves_figure(results: Results) -> Figure:
    """Every trial's objective against its optimizer steps."""
    trials = _ordered(results)
    shown = [(trial, _curve(trial, results.view.metric)) for trial in thin(trials, _CURVES, keep=20)]
    shown = [(trial, curve) for trial, curve in shown if curve]
    if not shown:
        return Figure(_HEADING, None, "No trial has reported yet.")
    values = [value for _, curve in shown for _, value in curve]
    low, high = _window(values)
    steps = [step for _, curve in shown for step, _ in curve]
    frame = Frame(80, 12, 460, 300, scale_of([0, *steps], log=False), scale_of([low, high], log=False))
    lines = join(_line(results, frame, trial, curve) for trial, curve in reversed(shown))
    box = tag("rect", x=frame.left, y=frame.top, width=frame.width, height=frame.height)
    clip = tag("clipPath", box, id="curves-frame")
    inside = tag("g", lines, clip_path="url(#curves-frame)")
    axes = frame.axes("optimizer step", results.metric)
    label = f"{results.metric} over optimizer steps, one line for each trial"
    drawing = svg(560, 364, label, clip, axes, inside)
    return Figure(_HEADING, drawing, _caption(results, len(shown), len(trials), (low, high), values))


def _ordered(results: Results) -> list[TrialView]:
    """Finished trials, the best first, then those without a full-length result."""
    finished = results.chosen_first
    others = [t for t in results.view.trials.values() if t.state != "finished"]
    return finished + [trial for trial in others if trial.reports]


def _curve(trial: TrialView, metric: str) -> Curve:
    """At most `_POINTS` points of a trial, the last one among them."""
    points = [(step, metrics[metric]) for step, metrics in trial.reports if is_number(metrics.get(metric))]
    if len(points) <= _POINTS:
        return points
    return [points[index * (len(points) - 1) // (_POINTS - 1)] for index in range(_POINTS)]


def _window(values: list[float]) -> tuple[float, float]:
    """The range that is drawn: everything, unless outliers would press the rest into a line."""
    low, high = min(values), max(values)
    if len(values) < 20:
        return low, high
    cuts = quantiles(values, n=20)
    reach = 2 * (cuts[-1] - cuts[0])
    return (
        low if low >= cuts[0] - reach else cuts[0] - reach / 8,
        high if high <= cuts[-1] + reach else cuts[-1] + reach / 8,
    )


def _line(results: Results, frame: Frame, trial: TrialView, curve: Curve) -> Html:
    kind = "best" if trial.fingerprint in results.chosen else trial.state
    step, value = curve[-1]
    x, y = frame.at(step, value)
    end = "" if trial.state == "finished" else tag("circle", cx=x, cy=y, r=2.5, class_=f"end {trial.state}")
    words = title(describe(results, trial))
    if len(curve) == 1:
        return tag("circle", words, cx=x, cy=y, r=3, class_=f"end {kind}")
    return tag("g", words, tag("path", d=frame.path(curve), class_=f"curve {kind}"), end)


def _caption(
    results: Results, shown: int, total: int, window: tuple[float, float], values: list[float]
) -> str:
    parts = []
    if shown < total:
        parts.append(
            f"{shown} of {total} curves are drawn, with the best 20 and an even choice of the others."
        )
    if results.chosen:
        parts.append(f"Bold: the best configuration ({results.chosen_text}).")
    parts.append("Dashed with a dot: stopped early; red with a dot: failed.")
    outside = sum(not window[0] <= value <= window[1] for value in values)
    if outside:
        parts.append(f"{outside} of {len(values)} points lie outside the frame.")
    return " ".join(parts)
