"""The page's first section: the best configuration, how sure that is, and what is as good."""

from __future__ import annotations

from collections.abc import Iterator

from sweeps.best import Contender, Selection
from sweeps.interval import LEVEL
from sweeps.report.front import front_table
from sweeps.report.html import Html, join, scroll, tag, title
from sweeps.report.results import Results
from sweeps.report.scales import Scale, scale_of
from sweeps.report.search_words import final_text, phases_text
from sweeps.report.words import amount, counted, in_order, number, plain, score, short_names

__all__ = ["answer", "front_text", "rivals_text"]

_SHOWN = 12
_PLOT_W, _PLOT_H = 170.0, 22.0


def answer(results: Results) -> Html:
    """What the sweep found out."""
    selection = results.selection
    best = selection.best
    if best is None:
        return tag(
            "p", f"There is none{'' if results.view.closed else ' yet'}. {selection.note}", class_="absent"
        )
    several = len(selection.objectives) > 1
    return join([_card(results, best), front_table(results) if several else _contenders(results)])


def _card(results: Results, best: Contender) -> Html:
    names = short_names(best.group.point)
    values = [
        tag("div", tag("dt", plain(names[key], 40)), tag("dd", number(best.group.point[key])), class_="value")
        for key in in_order(best.group.point)
    ]
    headline = tag(
        "p",
        tag("span", plain(results.view.metric, 60)),
        " ",
        tag("strong", score(best.mean)),
        tag("span", _interval_text(best)),
        *(tag("span", f"; {text}") for text in _others(results, best)),
        class_="headline",
    )
    trials = ", ".join(f"{trial.number} (seed {trial.seed})" for trial in best.trials)
    facts = [f"{'Trial' if len(best.trials) == 1 else 'Trials'} {trials}."]
    if best.parameters is not None:
        facts.append(f"{best.parameters:,} trainable parameters without the head.")
    if lineage := phases_text(results.view, best.group.search[0] if best.group.search else best.trials[0]):
        facts.append(f"A copy of copies: {lineage}. The run in best.yaml replays all of it.")
    facts.append(results.selection.note)
    words = front_text(results.selection) if results.selection.front else rivals_text(results.selection)
    verdict = tag("p", words, class_="verdict")
    details = tag("p", plain(" ".join(facts), 1200), class_="absent")
    over = results.view.closed is not None
    then = "Train it to the end and test it once" if over else "The sweep is not over; go on with it"
    command = tag("code", "replora train best.yaml" if over else "replora resume .")
    after = tag("p", f"{then}, in this page's folder: ", command, class_="absent")
    if final := final_text(best.group.search):
        after = tag("p", f"Final run: {plain(final, 500)}.", class_="absent")
    return tag("div", headline, tag("dl", *values, class_="values"), verdict, details, after, class_="card")


def _interval_text(item: Contender) -> str:
    if item.interval is None:
        return " without an interval: one seed gives none for this metric"
    found = item.interval
    return f" {found.level:.0%} interval {score(found.low)} to {score(found.high)} ({found.basis})"


def _others(results: Results, best: Contender) -> Iterator[str]:
    """The further objectives of the chosen configuration."""
    for objective, value in list(zip(results.selection.objectives, best.objectives, strict=True))[1:]:
        yield f"{plain(objective.metric, 60)} {amount(value)}"


def front_text(selection: Selection) -> str:
    """One sentence on the Pareto front and the point of it that was chosen."""
    best, size, total = selection.best, len(selection.front), len(selection.contenders)
    assert best is not None
    named = " and ".join(objective.metric for objective in selection.objectives)
    kind = "confirmed configurations" if selection.stage == "confirm" else "configurations"
    return f"{size} of {total} {kind} are on the Pareto front of {named}; this is {best.words}."


def rivals_text(selection: Selection) -> str:
    """One sentence on how the best relates to all others."""
    others, rivals = len(selection.contenders) - 1, len(selection.rivals)
    if others <= 0:
        return "No other configuration was trained to its end, so there is nothing to compare it with."
    if not rivals:
        which = "the one other that was" if others == 1 else f"each of the {others} others that were"
        return f"It is better than {which} compared."
    if rivals == others:
        which = "the one other that was" if others == 1 else f"any of the {others} others that were"
        return f"It is not distinguishable from {which} compared."
    return f"It is not distinguishable from {rivals} of the {others} others that were compared."


def _contenders(results: Results) -> Html:
    selection = results.selection
    shown = selection.contenders[:_SHOWN]
    scale = scale_of([value for item in shown for value in _ends(item)], log=False)
    tested = any(item.gap for item in shown)
    heads = [
        "mean",
        "",
        f"{LEVEL:.0%} interval",
        "verdict",
        *(["best is ahead by"] if tested else []),
        "seeds",
    ]
    heads += [plain(name, 40) for name in short_names(results.keys).values()]
    head = tag("thead", tag("tr", *(tag("th", text, scope="col") for text in heads)))
    body = tag("tbody", *(_row(item, scale, results.keys, tested) for item in shown))
    total = len(selection.contenders)
    parts = [f"The best {len(shown)} of {counted(total, 'configuration')}."] if len(shown) < total else []
    parts += [f"How the second was judged: {plain(item.words, 200)}." for item in shown[1:2]]
    caption = tag("p", " ".join(parts), class_="absent")
    return join([scroll("Best configurations", tag("table", head, body)), caption])


def _ends(item: Contender) -> tuple[float, ...]:
    return (item.mean,) if item.interval is None else (item.interval.low, item.mean, item.interval.high)


def _row(item: Contender, scale: Scale, keys: tuple[str, ...], tested: bool) -> Html:
    interval = "–" if item.interval is None else f"{score(item.interval.low)} to {score(item.interval.high)}"
    gap = "–" if item.gap is None else f"{item.gap[0]:+.4f} to {item.gap[1]:+.4f}"
    return tag(
        "tr",
        tag("td", score(item.mean)),
        tag("td", _whisker(item, scale)),
        tag("td", interval),
        tag("td", item.verdict.replace("-", " "), class_=item.verdict, title=plain(item.words, 200)),
        *([tag("td", gap)] if tested else []),
        tag("td", str(len(item.values))),
        *(tag("td", number(item.group.point.get(key, "–"))) for key in keys),
    )


def _whisker(item: Contender, scale: Scale) -> Html:
    """The mean as a dot, its interval as a line, the single values as ticks."""
    middle = _PLOT_H / 2
    ends = [6 + scale.at(value) * (_PLOT_W - 12) for value in _ends(item)]
    inside = [value for value in item.values.values() if 0 <= scale.at(value) <= 1]
    ticks = [6 + scale.at(value) * (_PLOT_W - 12) for value in inside]
    parts = [
        title(f"{len(item.values)} values: {', '.join(score(value) for value in item.values.values())}"),
        tag("line", x1=ends[0], x2=ends[-1], y1=middle, y2=middle, class_="range"),
        *(tag("line", x1=x, x2=x, y1=middle - 6, y2=middle + 6, class_="axis") for x in ticks),
        tag("circle", cx=ends[len(ends) // 2], cy=middle, r=5, class_=f"mean {item.verdict}"),
    ]
    box = f"0 0 {_PLOT_W:.0f} {_PLOT_H:.0f}"
    return tag("svg", *parts, viewBox=box, width=_PLOT_W, height=_PLOT_H, aria_hidden="true")
