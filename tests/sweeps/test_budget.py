"""A sweep stops asking when its budget is spent, says so in the ledger, and goes on with a larger one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from replora.errors import ConfigError
from sweeps.agenda import Agenda
from sweeps.check import check_sweep
from sweeps.config import SweepConfig
from sweeps.director import Director
from sweeps.ledger import LEDGER_NAME, read_ledger, read_lines
from tests.sweeps.simulated import SimulatedHost, begin, cut_and_compare, grid, outcomes, run, sweep


def spent(folder: Path) -> list[dict[str, Any]]:
    return [line for line in read_lines(folder) if line["event"] == "spent"]


def test_a_budget_of_trials_ends_the_search(tmp_path: Path) -> None:
    director = run(tmp_path, grid(budget={"trials": 4}))
    assert director.done
    assert len(director.view.trials) == 4
    assert director.view.spent == {"search": "budget.trials: 4 of 4 trials are asked"}
    assert len(spent(tmp_path)) == 1


def test_a_part_is_kept_back_for_the_confirmation(tmp_path: Path) -> None:
    view = run(tmp_path, grid(budget={"trials": 5}, confirm={"top": 1, "seeds": (1, 2)})).view
    assert [trial.stage for trial in view.trials.values()] == ["search"] * 3 + ["confirm"] * 2


def test_examples_are_batch_times_steps_and_pruned_trials_give_theirs_back(tmp_path: Path) -> None:
    budget = {"examples": 10 * 200 * 16}
    whole = run(tmp_path / "whole", sweep(budget=budget, pruner={}, confirm={})).view
    assert len(whole.trials) == 10
    pruned = run(tmp_path / "pruned", sweep(budget=budget, confirm={})).view
    used = sum(trial.step * 16 for trial in pruned.trials.values())
    assert len(pruned.trials) > 10
    assert used <= 10 * 200 * 16
    assert "budget.examples" in pruned.spent["search"]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 60.0
        return self.now


def test_hours_stop_the_search_and_what_runs_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", Clock())
    director = run(tmp_path, grid(seeds=tuple(range(20)), budget={"hours": 0.5}))
    assert 1 <= len(director.view.trials) < 120
    assert {trial.state for trial in director.view.trials.values()} == {"finished"}
    assert director.view.spent["search"] == "budget.hours: 0.5 have passed"


def test_hours_count_over_all_starts_and_not_in_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("time.time", lambda: now[0])
    config = grid(budget={"hours": 1.0})
    with begin(tmp_path, config) as ledger:
        director = Director(config, ledger)
        assert director.ask() is not None
        now[0] = 3000.0
        director.sampled({"cpu": 1.0})
    now[0] = 500_000.0
    with begin(tmp_path, config) as ledger:
        ledger.append("resumed", versions={}, git="", accepted=[], config=config.model_dump(mode="json"))
        director = Director(config, ledger)
        assert (director.view.worked, director.view.since) == (3000.0, 500_000.0)
        assert director.ask() is not None
        now[0] += 500.0
        assert director.ask() is not None
        now[0] += 200.0
        assert director.ask() is None


def test_a_larger_budget_goes_on_where_the_smaller_one_ended(tmp_path: Path) -> None:
    small, large = grid(budget={"trials": 2}), grid(budget={"trials": 5})
    run(tmp_path / "two", small)
    with begin(tmp_path / "two", small) as ledger:
        ledger.append("closed", state="done")
        ledger.append("resumed", versions={}, git="", accepted=[], config=large.model_dump(mode="json"))
    host = SimulatedHost(3)
    view = run(tmp_path / "two", large, host).view
    assert len(host.admitted) == 3
    assert outcomes(view) == outcomes(run(tmp_path / "one", large).view)


@pytest.mark.parametrize(
    "config",
    [
        grid(budget={"trials": 5}, confirm={"top": 1, "seeds": (1, 2)}),
        sweep(budget={"examples": 6 * 200 * 16}, confirm={}),
    ],
    ids=["trials", "examples"],
)
def test_a_sweep_with_a_budget_cut_at_any_line_asks_the_same(
    tmp_path: Path, config: SweepConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda handle: None)
    cut_and_compare(tmp_path, config, every=2)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"tokens": 10**6}, "budget.tokens needs a task of language, but got digits"),
        ({"examples": 100}, "budget.examples must hold one trial at least, which takes 3,200, but got 100"),
        ({"trials": 2}, "budget.trials must hold a configuration and 2 confirming trials, 3, but got 2"),
    ],
)
def test_a_budget_that_cannot_be_kept_is_refused(budget: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_sweep(grid(budget=budget, confirm={"top": 1, "seeds": (1, 2)}))


def test_the_agenda_is_done_where_the_ledger_says_that_the_budget_is_spent(tmp_path: Path) -> None:
    config = grid(budget={"trials": 2})
    run(tmp_path, config)
    assert (tmp_path / LEDGER_NAME).exists()
    assert not Agenda(config, read_ledger(tmp_path)).left
