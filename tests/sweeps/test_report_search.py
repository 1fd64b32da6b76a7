"""Pages, summaries and the live table of sweeps with several objectives, populations, rungs and budgets."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest

from sweeps.best import select
from sweeps.config import SweepConfig
from sweeps.ledger import SweepView
from sweeps.report import LiveTable, summary
from sweeps.report.page import render
from tests.sweeps.pages import Page
from tests.sweeps.simulated import SimulatedHost, run, sweep
from tests.sweeps.test_pareto import by_rank, several
from tests.sweeps.test_population import LearningHost, pbt


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> SweepView:
    return run(tmp_path_factory.mktemp("front"), several(), SimulatedHost(3, by_rank)).view


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> SweepView:
    """A population whose best one is a copy: all begin far from the best rate."""
    space = {"optim.lr": {"log_uniform": (1e-4, 1e-3)}, "optim.weight_decay": {"values": (1e-4, 1e-3)}}
    return run(tmp_path_factory.mktemp("copied"), pbt(space=space), LearningHost(6)).view


def rung_sweep(**changes: Any) -> SweepConfig:
    pruner = {"name": "asha", "grace_steps": 50, "reduction": 2, "schedule": "rung"}
    return sweep(**{"pruner": pruner, "confirm": {}, **changes})


def text_of(view: SweepView) -> str:
    return summary(view, select(view), Path("runs/x"))


def test_the_page_draws_every_configuration_and_the_front(front: SweepView) -> None:
    page = Page(render(front))
    assert "Pareto front" in page.text
    assert len(page.of_class("mean")) == 4
    assert "4 of 5 configurations are on the Pareto front of accuracy and trainable_parameters" in page.text
    assert "accuracy against trainable_parameters, one dot for each configuration" in str(page.tags)
    heads = page.text.partition("All trials")[2].partition("fingerprint")[0]
    assert "trainable_parameters" in heads


def test_the_summary_lists_the_front_and_marks_the_chosen_one(front: SweepView) -> None:
    lines = text_of(front).splitlines()
    marked = [line for line in lines if line.startswith("* ")]
    assert len(marked) == 1
    assert "this is the knee of the Pareto front." in text_of(front)
    listed = [line for line in lines if re.match(r"[* ] accuracy .*trainable_parameters", line)]
    assert len(listed) == 4


def test_proposals_that_became_no_trial_are_counted(tmp_path: Path) -> None:
    space = {"optim.lr": {"values": (1e-3, 1e-2)}}
    search = {"name": "random", "trials": 6}
    view = run(tmp_path, sweep(space=space, search=search, pruner={}, confirm={}), SimulatedHost(3)).view
    assert len(view.trials) == 2
    words = "4 proposals were not trained: known already, no valid run"
    assert words in text_of(view)
    assert words in Page(render(view)).text


def test_one_objective_has_no_front(copied: SweepView) -> None:
    assert "Pareto" not in render(copied)
    assert "Pareto" not in text_of(copied)


def test_the_live_table_names_the_front(front: SweepView) -> None:
    stream = io.StringIO()
    with LiveTable(front, 3, 5, stream=stream, clock=lambda: 0.0):
        pass
    assert "on the Pareto front so far: 4 (trials" in stream.getvalue()


def test_a_copy_says_whose_it_is_and_which_rates_it_had(copied: SweepView) -> None:
    text = text_of(copied)
    assert re.search(r"trial \d+, from step 50 trial \d+", text)
    assert re.search(
        r"Rates: from step 0 lr [\d.e-]+, weight decay [\d.e-]+; from step 50 lr", " ".join(text.split())
    )
    page = Page(render(copied))
    assert "copy of" in page.text
    assert "The run in best.yaml replays all of it." in page.text


def test_the_schedule_of_stopped_trials_is_named(tmp_path: Path) -> None:
    rung = run(tmp_path / "rung", rung_sweep(), SimulatedHost(3)).view
    full = run(tmp_path / "full", sweep(confirm={}), SimulatedHost(3)).view
    assert "schedule: per rung: it comes to its end at the steps 50, 100, 200 and begins anew" in text_of(
        rung
    )
    assert "schedule: of a trial's full length, also where it is stopped before" in text_of(full)
    for view, text in ((full, "of a trial's full length"), (rung, "per rung: it comes to its end at")):
        assert f"Learning-rate schedule: {text}" in Page(render(view)).text
    assert "that of a whole, shorter training" in Page(render(rung)).text
    assert "≥" not in Page(render(rung)).text
    assert "≥" in Page(render(full)).text


def test_trials_of_a_rung_sweep_train_with_the_schedule_of_their_rungs(tmp_path: Path) -> None:
    view = run(tmp_path, rung_sweep(), SimulatedHost(3)).view
    assert {tuple(trial.config["optim"]["restarts"]) for trial in view.trials.values()} == {(50, 100)}


def test_a_spent_budget_is_named(tmp_path: Path) -> None:
    config = rung_sweep(budget={"trials": 6}, confirm={"top": 1, "seeds": (1, 2)})
    view = run(tmp_path, config, SimulatedHost(3)).view
    said = "budget.trials: 4 of 6 trials are asked, 2 are kept for fresh seeds"
    assert f"stopped asking: {said}" in text_of(view)
    assert said in Page(render(view)).text
