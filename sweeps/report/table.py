"""The table of all trials, and the list of failures."""

from __future__ import annotations

from sweeps.ledger import TrialView
from sweeps.report.html import Html, join, scroll, tag
from sweeps.report.progress import planned_steps
from sweeps.report.results import Results, failure_groups
from sweeps.report.scales import is_number
from sweeps.report.search_words import copy_text, schedule_text
from sweeps.report.words import amount, counted, duration, number, plain, point_text, score, short_names

__all__ = ["failures", "trials_table"]

_NAMED = 12


def trials_table(results: Results) -> Html:
    """Every trial, the best first, with what their learning rates follow; a few lines of script sort it."""
    names = short_names(results.keys)
    keys = [plain(names[key], 40) for key in results.keys]
    heads = [
        "trial",
        "state",
        *(plain(objective.metric, 40) for objective in results.view.objectives),
        *keys,
        "seed",
        "stage",
        "steps",
        *(["copy of"] if _has_copies(results) else []),
        "time",
        "fingerprint",
    ]
    ranked = {trial.fingerprint: rank for rank, trial in enumerate(results.finished)}
    last = len(ranked)
    trials = sorted(results.view.trials.values(), key=lambda t: (ranked.get(t.fingerprint, last), t.number))
    head = tag("thead", tag("tr", *(tag("th", text, scope="col") for text in heads)))
    body = tag("tbody", *(_row(results, trial) for trial in trials))
    table = scroll("All trials", tag("table", head, body, id="trials"), tall=True)
    return join([table, tag("p", plain(_schedule(results), 400), class_="absent")])


def _schedule(results: Results) -> str:
    text = schedule_text(results.view) or "of the full length"
    pruned = any(trial.state == "pruned" for trial in results.view.trials.values())
    sign = results.bound.strip()
    bound = f" {sign} marks the value of a trial that was stopped before its end." if pruned and sign else ""
    return f"Learning-rate schedule: {text}.{bound}"


def _row(results: Results, trial: TrialView) -> Html:
    value = "" if trial.objective is None else score(trial.objective)
    bound = results.bound if value and trial.state == "pruned" else ""
    points = (_cell(trial.point.get(key)) for key in results.keys)
    seconds = trial.seconds
    return tag(
        "tr",
        tag("td", str(trial.number)),
        tag("td", trial.state, class_=trial.state),
        tag("td", bound + value, data_v=_exact(trial.objective)),
        *(_further(trial, objective.metric) for objective in results.view.objectives[1:]),
        *points,
        tag("td", str(trial.seed)),
        tag("td", trial.stage),
        tag("td", f"{trial.step}/{planned_steps(trial)}", data_v=trial.step),
        *(
            [tag("td", copy_text(results.view, trial).removeprefix("copy of "))]
            if _has_copies(results)
            else []
        ),
        tag("td", "" if seconds is None else duration(seconds), data_v=_exact(seconds)),
        tag("td", trial.fingerprint[:12], class_="mono"),
    )


def _has_copies(results: Results) -> bool:
    return bool(results.view.config.get("search", {}).get("name") == "pbt")


def _cell(value: object) -> Html:
    return tag("td", "–" if value is None else number(value))


def _further(trial: TrialView, metric: str) -> Html:
    """An objective after the first."""
    value = trial.metrics.get(metric)
    return tag("td", "" if value is None else amount(value), data_v=_exact(value))


def _exact(value: object) -> str | None:
    """What a float sorts by, where its four digits on the page would not do."""
    return f"{value:.8g}" if isinstance(value, float) and is_number(value) else None


def failures(results: Results) -> Html:
    """Failed trials by reason, with the points where they failed."""
    groups = failure_groups(results.view.trials.values())
    if not groups:
        return tag("p", "No trial failed.")
    return tag("ul", *(_failure(reason, trials) for reason, trials in groups), class_="failures")


def _failure(reason: str, trials: list[TrialView]) -> Html:
    count = counted(len(trials), "trial")
    lines = [
        f"trial {t.number} at step {t.step}: {point_text(t.point)}, seed {t.seed}" for t in trials[:_NAMED]
    ]
    if len(trials) > _NAMED:
        lines.append(f"and {len(trials) - _NAMED} more, marked failed in the table")
    items = join(tag("li", plain(line, 400)) for line in lines)
    return tag("li", tag("strong", count), ": ", tag("code", reason), tag("ul", items))
