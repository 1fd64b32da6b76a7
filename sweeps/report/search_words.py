"""How a sweep searched, in words: its schedule, its budget, and what earlier sweeps told it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sweeps.ledger import SweepView, TrialView
from sweeps.lineage import lineage_text
from sweeps.report.words import amount
from sweeps.warm import earlier_words

__all__ = ["copy_text", "final_text", "phases_text", "schedule_text", "skipped_text", "warm_texts"]


def schedule_text(view: SweepView) -> str:
    """What a trial's learning rate follows, where trials may be stopped or copied; else empty."""
    pruner, search = view.config.get("pruner", {}), view.config.get("search", {})
    if search.get("name") == "pbt":
        every = search["population"]["every"]
        return f"of the full length; the population decides every {every} steps, and copies have other peaks"
    if pruner.get("name", "none") == "none":
        return ""
    if pruner.get("schedule") != "rung":
        return "of a trial's full length, also where it is stopped before"
    rungs = view.config.get("run", {}).get("train", {}).get("steps")
    steps = next((trial.config["optim"]["restarts"] for trial in view.trials.values()), ())
    ends = ", ".join(str(step) for step in [*steps, rungs] if step)
    return f"per rung: it comes to its end at the steps {ends} and begins anew"


def skipped_text(view: SweepView) -> str:
    """How many proposals became no trial; empty where all did."""
    if not view.skipped:
        return ""
    count = "1 proposal was" if view.skipped == 1 else f"{view.skipped} proposals were"
    return f"{count} not trained: known already, no valid run, or above search.max_parameters"


def warm_texts(view: SweepView) -> Iterator[str]:
    """What each earlier sweep gave, and what of it did not fit."""
    for each in view.warm:
        yield earlier_words(each["name"], each["told"], each["left_out"])


def copy_text(view: SweepView, trial: TrialView) -> str:
    """`copy of 3 at 50` for a copy of population-based training; else empty."""
    return f"copy of {view.trials[trial.parent].number} at {trial.parent_step}" if trial.parent else ""


def final_text(trials: Iterable[TrialView]) -> str:
    """What the final run of a configuration's trials gave on the test split, and where it is; else empty."""
    for trial in trials:
        tested = [(name, value) for name, value in trial.final.items() if name.startswith("test_")]
        if tested:
            values = ", ".join(f"{name} {amount(value)}" for name, value in tested)
            return f"{values} ({trial.final_dir})"
    return ""


def phases_text(view: SweepView, trial: TrialView) -> str:
    """The lineage of a copy and the rates that its run has in its parts; else empty."""
    optim = trial.config.get("optim", {})
    if not trial.parent:
        return ""
    parts = [(0, optim["lr"], optim["weight_decay"])]
    parts += [(each["from_step"], each["lr"], each["weight_decay"]) for each in optim["phases"]]
    rates = "; ".join(f"from step {step} lr {lr:.4g}, weight decay {decay:.4g}" for step, lr, decay in parts)
    return f"{lineage_text(view.trials, trial)}. Rates: {rates}"
