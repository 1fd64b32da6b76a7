"""The page of a sweep: one file that opens offline, without any other file and without the network."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from replora.atomic import write_atomically
from sweeps.best import Selection
from sweeps.ledger import SweepView, read_ledger
from sweeps.report.answer import answer
from sweeps.report.axes import Figure
from sweeps.report.curves import curves_figure
from sweeps.report.front import front_figure
from sweeps.report.html import Html, join, scroll, tag
from sweeps.report.importance import importance_figure
from sweeps.report.maps import map_figure
from sweeps.report.parallel import parallel_figure
from sweeps.report.results import Results
from sweeps.report.search_words import schedule_text, skipped_text, warm_texts
from sweeps.report.table import failures, trials_table
from sweeps.report.words import counted, date, duration, plain

__all__ = ["REPORT_NAME", "render", "write_report"]

REPORT_NAME = "report.html"
_TEMPLATE = Path(__file__).parent / "template"


def write_report(folder: Path, view: SweepView | None = None, selection: Selection | None = None) -> Path:
    """The path of the page that was written for a sweep's folder, finished or not.

    Args:
        folder: The sweep's folder; only its ledger is read.
        view: What that says, where the caller knows.
        selection: What `sweeps.best.select` says of the view, where the caller knows.

    Raises:
        LedgerError: If the folder has no ledger or a damaged one.
    """
    path = folder / REPORT_NAME
    write_atomically(path, render(view or read_ledger(folder), selection).encode())
    return path


def render(view: SweepView, selection: Selection | None = None) -> str:
    """The whole page of a sweep; `selection` is what `sweeps.best.select` says of it, where that is known."""
    results = Results.of(view, selection)
    style = (_TEMPLATE / "report.css").read_text(encoding="utf-8")
    script = (_TEMPLATE / "report.js").read_text(encoding="utf-8")
    head = tag(
        "head",
        Html('<meta charset="utf-8">'),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{_policy(script)}">'),
        Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html('<meta name="color-scheme" content="light dark">'),
        Html('<link rel="icon" href="data:,">'),
        tag("title", f"{plain(view.name)}: sweep report"),
        tag("style", Html(style)),
    )
    body = tag("body", _header(view), tag("main", *_sections(results)), tag("script", Html(script)))
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _policy(script: str) -> str:
    """Only this page's own script runs, and nothing is fetched, whatever a name in the ledger says."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"


def _header(view: SweepView) -> Html:
    facts = {
        "state": _state(view),
        "started": date(view.started),
        "last change": f"{date(view.updated)}, after {duration(view.updated - view.started)}",
        "sweep": view.fingerprint,
        "schedule": schedule_text(view),
        "proposals": skipped_text(view),
        "budget": "; ".join(dict.fromkeys(view.spent.values())),
        "warm start": "; ".join(warm_texts(view)),
        "code": view.git,
        "data": view.data,
        "versions": ", ".join(f"{name} {version}" for name, version in view.versions.items()),
    }
    rows = (join([tag("dt", name), tag("dd", plain(text, 500))]) for name, text in facts.items() if text)
    return tag(
        "header", tag("h1", plain(view.name)), tag("p", _counts(view), class_="lead"), tag("dl", *rows)
    )


def _state(view: SweepView) -> str:
    return view.closed or "not over: still running, or interrupted (then `replora resume` goes on with it)"


def _counts(view: SweepView) -> str:
    counts = Counter(trial.state for trial in view.trials.values())
    parts = [
        f"{counts[state]} {state}"
        for state in ("finished", "pruned", "failed", "running", "paused", "asked")
        if counts[state]
    ]
    return f"{counted(len(view.trials), 'trial')}: {', '.join(parts)}" if parts else "no trials yet"


def _sections(results: Results) -> Iterable[Html]:
    several = len(results.view.objectives) > 1
    yield _section("Chosen configuration" if several else "Best configuration", answer(results))
    figures = [map_figure, importance_figure, curves_figure, parallel_figure]
    figures = [front_figure, *figures] if several else figures
    yield tag("div", *(_figure(make(results)) for make in figures), class_="pair")
    yield _section("All trials", trials_table(results))
    yield _section("Failures", failures(results))
    yield _section("How to read this page", _notes(results))


def _section(heading: str, *content: Html, wide: bool = False) -> Html:
    return tag("section", tag("h2", heading), *content, class_="wide" if wide else None)


def _figure(figure: Figure) -> Html:
    if figure.drawing is None:
        return _section(figure.heading, tag("p", figure.caption, class_="absent"))
    drawing = scroll(figure.heading, figure.drawing)
    content = tag("figure", drawing, tag("figcaption", figure.caption))
    return _section(figure.heading, content, wide=figure.wide)


def _notes(results: Results) -> Html:
    bound = "a lower bound" if results.view.direction == "maximize" else "an upper bound"
    pruned = (
        f"A pruned trial was stopped before its learning rate came down: its value is read as {bound} of "
        f"what its full length would have given ({results.bound.strip()}), and is left out of means, of the "
        "choice of the best and of importance."
    )
    if results.annealed:
        pruned = (
            "Learning rates come down to the end of their schedule at every rung and begin anew, so a pruned "
            "trial's value is that of a whole, shorter training. It is left out of means, of the choice of "
            "the best and of importance all the same, because the others were trained longer."
        )
    split = (
        f"{plain(results.view.metric)} is measured on the validation split. The best of many trials is "
        "partly the luckiest one: the test split, read once by the final run, says how good it is."
    )
    colours = "The stronger a colour stands out from the page, the better the trial. The palette is viridis."
    return tag("ul", *(tag("li", text) for text in (pruned, split, colours)))
