"""Several objectives: the front is what nothing beats, a person can choose from it, nothing is pruned."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from replora.cli import main
from replora.errors import ConfigError, RunFailedError
from replora.load import load, load_run
from replora.ppt import ppt
from sweeps.best import select
from sweeps.check import check_sweep, sweep_faults
from sweeps.chosen import parse_limit, within
from sweeps.config import SweepConfig
from sweeps.groups import groups_of
from sweeps.ledger import read_lines
from sweeps.objective import Objective, parameters_of
from sweeps.pareto import knee, non_dominated
from tests.sweeps.simulated import SimulatedHost, cut_and_compare, grid, outcomes, run, sweep

UP, DOWN = Objective("accuracy", "maximize"), Objective("trainable_parameters", "minimize")
BOTH = [{"metric": "accuracy"}, {"metric": "trainable_parameters"}]
RANKS = {"method.name": {"values": ("lora",)}, "method.rank": {"values": (1, 2, 4, 8, 16)}}


def several(**changes: Any) -> SweepConfig:
    """Five ranks, of which more are better up to 8."""
    return grid(**{"space": RANKS, "objective": BOTH, **changes})


def by_rank(config: Any, step: int) -> float:
    values = {1: 0.6, 2: 0.8, 4: 0.88, 8: 0.9, 16: 0.85}
    return values[int(config.method.rank)] + 0.001 * int(config.seed)


def test_the_front_is_what_no_other_point_dominates() -> None:
    rng = random.Random(0)
    points = [(rng.random(), rng.randrange(1, 9)) for _ in range(60)]
    front = non_dominated(points, [UP, DOWN])
    for index, (up, down) in enumerate(points):
        beaten = any(u >= up and d <= down and (u, d) != (up, down) for u, d in points)
        assert (index in front) != beaten
    assert [points[index][0] for index in front] == sorted((points[i][0] for i in front), reverse=True)


def test_equal_points_are_all_on_the_front() -> None:
    assert non_dominated([(0.5, 3), (0.5, 3), (0.4, 4)], [UP, DOWN]) == [0, 1]


def test_the_knee_is_nearest_to_all_best_values_at_once() -> None:
    assert knee([(0.9, 100_000), (0.89, 1_000), (0.5, 100)], [UP, DOWN]) == 1
    assert knee([(0.9, 7)], [UP, DOWN]) == 0


def test_a_sweep_of_several_objectives_ends_with_its_front(tmp_path: Path) -> None:
    selection = select(run(tmp_path, several(), SimulatedHost(3, by_rank)).view)
    assert [item.group.point["method.rank"] for item in selection.front] == [8, 4, 2, 1]
    assert [item.verdict for item in selection.contenders if item.group.point["method.rank"] == 16] == [
        "dominated"
    ]
    assert selection.best is not None
    assert selection.best.words == "the knee of the Pareto front"
    assert selection.best.objectives[1] == parameters_of(load_run_of(selection.best.group.config))


def load_run_of(config: dict[str, Any]) -> Any:
    from replora.config import RunConfig

    return RunConfig.model_validate({**config, "seed": 0})


def test_a_quantity_is_reported_beside_the_metrics(tmp_path: Path) -> None:
    config = several(objective=[{"metric": "accuracy"}, {"metric": "ppt"}])
    view = run(tmp_path, config, SimulatedHost(3, by_rank)).view
    for trial in view.trials.values():
        parameters = parameters_of(load_run_of(trial.config))
        assert parameters is not None
        assert trial.metrics["ppt"] == ppt(trial.metrics["accuracy"], parameters)


@pytest.mark.parametrize(
    ("limit", "rank"),
    [("trainable_parameters<=5000", 4), ("accuracy>=0.85", 8), ("trainable_parameters<=1100", 1)],
)
def test_the_best_within_a_limit_can_be_chosen(tmp_path: Path, limit: str, rank: int) -> None:
    selection = select(run(tmp_path, several(), SimulatedHost(3, by_rank)).view)
    chosen = within(selection, [parse_limit(limit)])
    assert chosen.best is not None
    assert chosen.best.group.point["method.rank"] == rank
    assert chosen.best.words == f"best accuracy on the Pareto front with {limit}"
    assert chosen.front == tuple(chosen.best if i.group is chosen.best.group else i for i in chosen.front)
    assert len(chosen.front) == len(selection.front)


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ("trainable_parameters<=10", "no configuration on the Pareto front has trainable_parameters<=10"),
        ("parameters<=10", "Did you mean trainable_parameters? Objectives: accuracy, trainable_parameters."),
        ("accuracy=1", "--where must be METRIC<=NUMBER or METRIC>=NUMBER, but got 'accuracy=1'"),
    ],
)
def test_a_limit_that_cannot_be_met_says_so(tmp_path: Path, limit: str, message: str) -> None:
    selection = select(run(tmp_path, several(), SimulatedHost(3, by_rank)).view)
    with pytest.raises((ConfigError, RunFailedError), match=re.escape(message)):
        within(selection, [parse_limit(limit)])


def test_one_objective_has_no_front_to_choose_from(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="this sweep has one objective"):
        within(select(run(tmp_path, grid()).view), [parse_limit("accuracy>=0.1")])


def test_the_verb_writes_the_chosen_point_and_the_front(tmp_path: Path) -> None:
    run(tmp_path, several(), SimulatedHost(3, by_rank))
    out = tmp_path / "small.yaml"
    assert main(["best", str(tmp_path), "--where", "trainable_parameters<=5000", "--out", str(out)]) == 0
    document = yaml.safe_load(out.read_text())
    assert load_run(out).method.rank == 4  # type: ignore[union-attr]
    assert [each["point"]["method.rank"] for each in document["front"]] == [8, 4, 2, 1]
    assert [each["chosen"] for each in document["front"]] == [False, True, False, False]
    assert document["front"][1]["values"]["accuracy"] == 0.88


def test_fresh_seeds_go_to_the_front_alone(tmp_path: Path) -> None:
    config = several(confirm={"top": 3, "seeds": (1, 2)})
    view = run(tmp_path, config, SimulatedHost(3, by_rank)).view
    confirmed = [group.point["method.rank"] for group in groups_of(view) if group.confirm]
    assert confirmed == [1, 2, 8]  # both ends of the front 8, 4, 2, 1 and one between
    assert select(view).stage == "confirm"


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "gp", "qmc"])
def test_a_search_for_a_front_cut_at_any_line_asks_the_same(
    tmp_path: Path, sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda handle: None)
    search = {"name": "optuna", "trials": 13 if sampler == "gp" else 16, "sampler": sampler}
    config = sweep(search=search, objective=BOTH, pruner={}, confirm={})
    cut_and_compare(tmp_path, config, every=11 if sampler in ("tpe", "nsga2") else 61)


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_a_searcher_of_several_objectives_learns(tmp_path: Path, sampler: str) -> None:
    search = {"name": "optuna", "trials": 60, "sampler": sampler}
    view = run(tmp_path, sweep(search=search, objective=BOTH, pruner={}, confirm={}), SimulatedHost(1)).view
    ranks = [float(trial.point["method.rank"]) for trial in view.trials.values()]
    assert sum(ranks[-20:]) < sum(ranks[:20])


def test_more_parameters_than_allowed_are_not_trained(tmp_path: Path) -> None:
    search = {"max_parameters": 5000}
    view = run(tmp_path, several(search=search), SimulatedHost(3, by_rank)).view
    assert {trial.point["method.rank"] for trial in view.trials.values()} == {1, 2, 4}
    skipped = [line for line in read_lines(tmp_path) if line["event"] == "skipped"]
    assert [line["reason"] for line in skipped] == ["more than search.max_parameters"] * 2


def test_optuna_keeps_away_from_what_is_above_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda handle: None)
    search = {"name": "optuna", "trials": 40, "max_parameters": 20_000}
    config = sweep(search=search, pruner={}, confirm={}, space=RANKS_OPEN)
    cut_and_compare(tmp_path, config, every=29)
    events = [
        line["event"] for line in read_lines(tmp_path / "whole") if line["event"] in ("asked", "skipped")
    ]
    assert events[:20].count("skipped") > events[20:].count("skipped")


RANKS_OPEN = {"optim.lr": {"log_uniform": (1e-4, 1e-1)}, "method.rank": {"integers": (1, 64)}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pruner": {"name": "asha"}}, "pruner.name must be none with several objectives, but got asha"),
        (
            {"objective": [*BOTH, {"metric": "accuracy"}]},
            "objective must not repeat a metric, but accuracy comes twice",
        ),
        (
            {"objective": [{"metric": "f1", "direction": "maximize"}, {}]},
            "must be a metric of the task digits, but got 'f1'",
        ),
        (
            {"confirm": {"top": 2, "seeds": (1, 2, 3), "start": 2}},
            "confirm.start must be null with several objectives",
        ),
    ],
)
def test_what_several_objectives_exclude_is_told(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_sweep(several(**changes))


def test_a_sweep_file_may_list_objectives(tmp_path: Path) -> None:
    path = tmp_path / "front.yaml"
    text = "name: front\nspace: {method.rank: {values: [2, 4]}}\n"
    text += "objective:\n  - {metric: accuracy}\n  - {metric: ppt}\n"
    path.write_text(text)
    found = load(SweepConfig, path, (), sweep_faults)
    assert isinstance(found.objective, tuple)
    assert [each.metric for each in found.objective] == ["accuracy", "ppt"]
    path.write_text(text.replace("{metric: ppt}", "{metrc: ppt}"))
    with pytest.raises(
        ConfigError, match=r"front.yaml:5: objective\.1\.metrc is not a field|objective\[1\].metrc is not"
    ):
        load(SweepConfig, path, (), sweep_faults)
    path.write_text(text.split("objective:")[0] + "objective: {metrc: ppt}\n")
    with pytest.raises(ConfigError, match=r"objective.metrc is not a field of objective"):
        load(SweepConfig, path, (), sweep_faults)


def test_outcomes_do_not_depend_on_the_slots(tmp_path: Path) -> None:
    one = outcomes(run(tmp_path / "one", several(), SimulatedHost(1, by_rank)).view)
    assert outcomes(run(tmp_path / "three", several(), SimulatedHost(3, by_rank)).view) == one
