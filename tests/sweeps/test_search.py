from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import Any

import pytest

from replora.errors import MachineError
from sweeps.config import SearchConfig
from sweeps.objective import Objective
from sweeps.search import OptunaSearch, Outcome, Searcher, check_installed, make_searcher
from sweeps.space import Point, Space
from tests.sweeps.simulated import grid, sweep

MAXIMIZE = (Objective("accuracy", "maximize"),)
SAMPLERS = ["tpe", "cma-es", "gp", "qmc"]


def optuna(sampler: str = "tpe", trials: int = 30, **changes: Any) -> OptunaSearch:
    config = sweep(search={"name": "optuna", "trials": trials, "sampler": sampler}, **changes)
    found = make_searcher(config, MAXIMIZE)
    assert isinstance(found, OptunaSearch)
    return found


def value_of(point: Point) -> float:
    return -abs(math.log10(float(point["optim.lr"])) + 2)


def outcome(number: int, point: Point) -> Outcome:
    """Every third fails, every third is pruned, the others finish."""
    if number % 3 == 1:
        return Outcome("failed")
    reports = [(50, value_of(point)), (100, value_of(point))]
    return Outcome("pruned" if number % 3 else "finished", (value_of(point),), reports)


def proposals(searcher: Searcher, count: int, tell: Callable[[int, Point], Outcome] = outcome) -> list[Point]:
    found = []
    for number in range(count):
        found.append(searcher.ask())
        searcher.tell(number, tell(number, found[-1]))
    return found


def test_a_grid_proposes_every_point_once() -> None:
    searcher = make_searcher(grid(), MAXIMIZE)
    assert searcher.left == 6
    points = proposals(searcher, 6)
    assert points == list(Space(grid()).grid())
    assert searcher.left == 0


def test_a_grid_begins_with_the_points_that_come_first() -> None:
    first: Point = {"optim.lr": 1e-1, "optim.weight_decay": 1e-2}
    searcher = make_searcher(grid(search={"first": (first,)}), MAXIMIZE)
    points = proposals(searcher, 6)
    assert points[0] == first
    assert points.count(first) == 1


@pytest.mark.parametrize("name", ["random", "optuna"])
def test_the_same_seed_proposes_the_same(name: str) -> None:
    def points(seed: int) -> list[Point]:
        search = {"name": name, "trials": 15, "seed": seed}
        return proposals(make_searcher(sweep(search=search), MAXIMIZE), 15)

    assert points(0) == points(0) != points(1)


@pytest.mark.parametrize("name", ["random", "optuna"])
def test_first_points_come_first(name: str) -> None:
    first = ({"optim.lr": 3e-3, "method.rank": 5}, {"optim.lr": 4e-3, "method.rank": 6})
    search = {"name": name, "trials": 5, "first": first}
    assert proposals(make_searcher(sweep(search=search), MAXIMIZE), 5)[:2] == list(first)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_study_rebuilt_from_its_record_goes_on_as_the_lost_one(sampler: str, cut: int) -> None:
    whole = proposals(optuna(sampler, trials=40), 40)
    rebuilt = optuna(sampler, trials=40)
    for number, point in enumerate(whole[:cut]):
        rebuilt.recall(point)
        rebuilt.tell(number, outcome(number, point))
    rest = [rebuilt.ask()]
    for number in range(cut, 39):
        rebuilt.tell(number, outcome(number, rest[-1]))
        rest.append(rebuilt.ask())
    assert rest == whole[cut:]


def test_proposals_that_run_side_by_side_are_rebuilt_too() -> None:
    def play(searcher: OptunaSearch, ask: Callable[[OptunaSearch, int], Point]) -> list[Point]:
        points = []
        for number in range(20):  # four at once: the n-th ends when the n+4-th is asked
            points.append(ask(searcher, number))
            if number >= 4:
                searcher.tell(number - 4, outcome(number - 4, points[number - 4]))
        return points

    whole = play(optuna(), lambda searcher, _: searcher.ask())

    def half_recalled(searcher: OptunaSearch, number: int) -> Point:
        if number >= 13:
            return searcher.ask()
        searcher.recall(whole[number])
        return whole[number]

    assert play(optuna(), half_recalled) == whole


def test_optuna_learns() -> None:
    points = proposals(optuna(trials=40), 40, lambda _, point: Outcome("finished", (value_of(point),)))
    early = sum(value_of(point) for point in points[:10])
    assert sum(value_of(point) for point in points[-10:]) > early


def test_optuna_is_told_what_became_of_each_trial() -> None:
    searcher = optuna()
    proposals(searcher, 6)
    states = [trial.state.name for trial in searcher._study.trials]
    assert states == ["COMPLETE", "FAIL", "PRUNED"] * 2


def test_a_pruned_trial_is_told_with_its_values_at_each_step() -> None:
    searcher = optuna()
    points = proposals(searcher, 3)
    pruned = searcher._study.trials[2]
    assert pruned.intermediate_values == {50: value_of(points[2]), 100: value_of(points[2])}


def test_optuna_proposes_conditional_keys_where_they_exist() -> None:
    space = {
        "method.name": {"values": ("lora", "replora")},
        "method.hidden": {"log_integers": (8, 64), "when": {"method.name": ("replora",)}},
        "optim.lr": {"log_uniform": (1e-4, 1e-1)},
    }
    points = proposals(optuna(space=space), 30)
    assert all(("method.hidden" in point) == (point["method.name"] == "replora") for point in points)
    assert len({point["method.name"] for point in points}) == 2


def test_integers_stay_integers_and_floats_floats() -> None:
    for point in proposals(optuna(), 12):
        assert type(point["method.rank"]) is int
        assert type(point["optim.lr"]) is float


def test_a_missing_package_is_named_before_the_sweep_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "cmaes" else real(name))
    with pytest.raises(MachineError, match=r"cma-es needs the package cmaes(.|\n)*pip install cmaes"):
        check_installed(SearchConfig(name="optuna", trials=3, sampler="cma-es"))


def test_a_grid_needs_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_installed(SearchConfig())
