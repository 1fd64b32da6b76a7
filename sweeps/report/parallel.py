"""Parallel coordinates: every trial as a line through its values and its objective."""

from __future__ import annotations

from sweeps.ledger import TrialView
from sweeps.report.axes import Figure, legend, svg
from sweeps.report.html import Html, join, tag, title
from sweeps.report.results import Results, describe, thin
from sweeps.report.scales import Scale, scale_of
from sweeps.report.words import plain, score, short_names

__all__ = ["parallel_figure"]

_HEADING = "Parallel coordinates"
_LINES = 400
_AXES = 9
_ORDINAL = 8
_TOP, _HEIGHT, _LEFT = 46.0, 270.0, 70.0
_ABSENT = -0.09


def parallel_figure(results: Results) -> Figure:
    """One line for each finished trial, coloured by its objective."""
    keys = results.keys[:_AXES]
    if results.shade is None or not keys:
        return Figure(_HEADING, None, "No trial has finished, or the space varies nothing.")
    shown = thin(results.chosen_first, _LINES, keep=100)
    scales = [results.scale(key, shown, ordinal_up_to=_ORDINAL) for key in keys]
    last = scale_of([trial.objective for trial in shown], log=False)
    gap = min(230.0, max(84.0, 430.0 / len(keys)))
    lines = join(_line(results, trial, keys, [*scales, last], gap) for trial in reversed(shown))
    names = [plain(name, 24) for name in short_names(keys).values()] + [plain(results.view.metric, 24)]
    axes = join(_axis(_LEFT + gap * i, s, n) for i, (s, n) in enumerate(zip(scales, names, strict=False)))
    axes = join([axes, _axis(_LEFT + gap * len(keys), last, names[-1], side=1)])
    width, bottom = _LEFT + gap * len(keys) + 60, _TOP + _HEIGHT
    ends = score(results.shade.worst), score(results.shade.best)
    key = legend(width / 2 - 60, bottom + 48, f"worse  {ends[0]}", f"{ends[1]}  better")
    label = f"Parallel coordinates of {', '.join(names)}"
    drawing = svg(width, bottom + 66, label, lines, axes, key, fits=False)
    return Figure(_HEADING, drawing, _caption(results, len(shown)), wide=width > 620)


def _axis(x: float, scale: Scale, name: str, side: int = -1) -> Html:
    bottom = _TOP + _HEIGHT
    parts: list[str] = [tag("line", x1=x, x2=x, y1=_TOP, y2=bottom, class_="axis")]
    for share, text in scale.ticks:
        y = bottom - share * _HEIGHT
        parts.append(tag("line", x1=x + 5 * side, x2=x, y1=y, y2=y, class_="axis"))
        anchor = "end" if side < 0 else "start"
        parts.append(tag("text", text, x=x + 9 * side, y=y + 4, class_="halo", text_anchor=anchor))
    parts.append(tag("text", name, x=x, y=_TOP - 20, class_="name", text_anchor="middle"))
    return join(parts)


def _line(results: Results, trial: TrialView, keys: tuple[str, ...], scales: list[Scale], gap: float) -> Html:
    assert results.shade is not None
    assert trial.objective is not None
    values = [trial.point.get(key) for key in keys] + [trial.objective]
    shares = [
        _ABSENT if value is None else scale.at(value) for value, scale in zip(values, scales, strict=True)
    ]
    pixels = (f"{_LEFT + gap * i:.1f} {_TOP + (1 - share) * _HEIGHT:.1f}" for i, share in enumerate(shares))
    best = " best" if trial.fingerprint in results.chosen else ""
    shade = results.shade.of_value(trial.objective)
    return tag(
        "path", title(describe(results, trial)), d="M" + "L".join(pixels), class_=f"strand v{shade}{best}"
    )


def _caption(results: Results, shown: int) -> str:
    parts = ["One line for each trial that ran to its end, coloured by the objective; bold: the best one."]
    if shown < len(results.finished):
        parts.append(
            f"{shown} of {len(results.finished)} are drawn: the best 100 and an even choice of the others."
        )
    if len(results.keys) > _AXES:
        parts.append(f"The first {_AXES} of {len(results.keys)} keys are shown.")
    if any(key not in trial.point for key in results.keys for trial in results.finished):
        parts.append("A line below an axis: the trial does not have this key.")
    return " ".join(parts)
