"""Parallel coordinates: every trial as a line through its values and its objective."""

from __future__ import annotations

from sweeps.ledger import TrialView
from sweeps.report.axes import legend, svg
from sweeps.report.html import Html, join, tag, title
from sweeps.report.maps import Figure
from sweeps.report.results import Results, describe, thin
from sweeps.report.scales import Scale, scale_of
from sweeps.report.words import number, plain, short_names

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
    shown = thin(list(results.finished), _LINES, keep=100)
    scales = [_scale(results, shown, key) for key in keys]
    last = scale_of([trial.objective for trial in shown], log=False)
    gap = min(190.0, max(120.0, 660.0 / len(keys)))
    lines = join(_line(results, trial, keys, [*scales, last], gap) for trial in reversed(shown))
    names = [plain(name, 24) for name in short_names(keys).values()] + [plain(results.view.metric, 24)]
    axes = join(
        _axis(_LEFT + gap * i, s, name)
        for i, (s, name) in enumerate(zip([*scales, last], names, strict=True))
    )
    width, bottom = _LEFT + gap * len(keys) + 80, _TOP + _HEIGHT
    ends = number(results.shade.worst), number(results.shade.best)
    key = legend(width / 2 - 60, bottom + 48, f"worse  {ends[0]}", f"{ends[1]}  better")
    label = f"Parallel coordinates of {', '.join(names)}"
    return Figure(_HEADING, svg(width, bottom + 66, label, lines, axes, key), _caption(results, len(shown)))


def _scale(results: Results, trials: list[TrialView], key: str) -> Scale:
    domain = results.view.config.get("space", {}).get(key, {})
    log = True if domain.get("log_uniform") or domain.get("log_integers") else None
    return scale_of((t.point[key] for t in trials if key in t.point), ordinal_up_to=_ORDINAL, log=log)


def _axis(x: float, scale: Scale, name: str) -> Html:
    bottom = _TOP + _HEIGHT
    parts: list[str] = [tag("line", x1=x, x2=x, y1=_TOP, y2=bottom, class_="axis")]
    for share, text in scale.ticks:
        y = bottom - share * _HEIGHT
        parts.append(tag("line", x1=x - 5, x2=x, y1=y, y2=y, class_="axis"))
        parts.append(tag("text", text, x=x - 8, y=y + 4, class_="tick halo", text_anchor="end"))
    parts.append(tag("text", name, x=x, y=_TOP - 20, class_="label", text_anchor="middle"))
    return join(parts)


def _line(results: Results, trial: TrialView, keys: tuple[str, ...], scales: list[Scale], gap: float) -> Html:
    assert results.shade is not None
    assert trial.objective is not None
    values = [trial.point.get(key) for key in keys] + [trial.objective]
    shares = [
        _ABSENT if value is None else scale.at(value) for value, scale in zip(values, scales, strict=True)
    ]
    pixels = (f"{_LEFT + gap * i:.1f} {_TOP + (1 - share) * _HEIGHT:.1f}" for i, share in enumerate(shares))
    best = " best" if trial is results.finished[0] else ""
    shade = results.shade.of_value(trial.objective)
    return tag(
        "path", title(describe(results, trial)), d="M" + "L".join(pixels), class_=f"strand v{shade}{best}"
    )


def _caption(results: Results, shown: int) -> str:
    parts = [
        "One line for each trial that ran to its end, coloured by the objective; bold: the best single trial."
    ]
    if shown < len(results.finished):
        parts.append(
            f"{shown} of {len(results.finished)} are drawn: the best 100 and an even choice of the others."
        )
    if len(results.keys) > _AXES:
        parts.append(f"The first {_AXES} of {len(results.keys)} keys are shown.")
    if any(key not in trial.point for key in results.keys for trial in results.finished):
        parts.append("A line below an axis: the trial does not have this key.")
    return " ".join(parts)
