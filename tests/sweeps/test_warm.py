"""What earlier sweeps found is told to the searcher, and what did not fit is counted with its reason."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from replora.errors import ConfigError, DataError
from replora.train.events import Failed
from sweeps.check import check_sweep
from sweeps.config import SweepConfig
from sweeps.ledger import read_lines
from sweeps.warm import earlier_words, read_earlier
from tests.sweeps.simulated import SimulatedHost, cut_and_compare, grid, run, sweep


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """A grid over learning rate and rank with two seeds; one of its trials failed."""
    space = {"optim.lr": {"values": (1e-3, 1e-2, 0.5)}, "method.rank": {"values": (4, 8)}}
    faults = {1: Failed("", 0, "diverged", "nan")}
    run(tmp_path / "earlier", grid(name="before", space=space, seeds=(0, 1)), SimulatedHost(1, faults=faults))
    return tmp_path / "earlier"


def warm(folder: Path, **changes: Any) -> SweepConfig:
    search = {"name": "optuna", "trials": 8, "warm_start": (str(folder),)}
    return sweep(**{"search": search, "confirm": {}, "pruner": {}, **changes})


def test_finished_configurations_of_the_same_space_are_told(tmp_path: Path, earlier: Path) -> None:
    director = run(tmp_path / "new", warm(earlier), SimulatedHost(1))
    study: Any = director._agenda._proposals._searcher
    told = [trial for trial in study._study.trials if trial.number < 3]
    assert [(t.params["optim.lr"], t.params["method.rank"]) for t in told] == [
        (1e-3, 8),
        (1e-2, 4),
        (1e-2, 8),
    ]
    assert all(t.state.name == "COMPLETE" for t in told)
    assert len(director.view.trials) == 8
    assert director.view.warm == [
        {
            "folder": str(earlier),
            "name": "before",
            "told": 3,
            "left_out": {"optim.lr is outside the space": 2, "not trained to the end": 1},
        }
    ]


def test_the_mean_over_seeds_is_told(tmp_path: Path, earlier: Path) -> None:
    run(tmp_path / "new", warm(earlier), SimulatedHost(1))
    line = next(line for line in read_lines(tmp_path / "new") if line["event"] == "warmed")
    by_point = [
        t.objective
        for t in run(earlier, grid(name="before"), SimulatedHost(1)).view.trials.values()
        if t.point == {"optim.lr": 1e-2, "method.rank": 4}
    ]
    assert line["told"][1] == {
        "point": {"optim.lr": 1e-2, "method.rank": 4},
        "values": [pytest.approx(sum(v or 0 for v in by_point) / 2)],
    }


def test_what_differs_outside_the_space_is_named(earlier: Path) -> None:
    found = read_earlier(warm(earlier, run={"train": {"steps": 100}}), earlier)
    assert not found.told
    assert found.left_out["train.steps: 200 -> 100"] == 3
    words = earlier_words(found.name, len(found.told), found.left_out)
    assert words.startswith("0 configurations of before told to the searcher; 3 not: train.steps: 200 -> 100")


def test_an_earlier_sweep_changes_what_is_proposed(tmp_path: Path, earlier: Path) -> None:
    search = {"name": "optuna", "trials": 12}
    cold = run(tmp_path / "cold", sweep(search=search, confirm={}, pruner={}), SimulatedHost(1)).view
    told = run(
        tmp_path / "warm", warm(earlier, search=search | {"warm_start": (str(earlier),)}), SimulatedHost(1)
    )
    points = [[t.point for t in view.trials.values()] for view in (cold, told.view)]
    assert points[0] != points[1]


def test_a_warm_started_sweep_cut_at_any_line_asks_the_same(
    tmp_path: Path, earlier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda handle: None)
    cut_and_compare(tmp_path, warm(earlier), every=3)


def test_the_earlier_folder_is_not_needed_again(tmp_path: Path, earlier: Path) -> None:
    config = warm(earlier)
    run(tmp_path / "new", config, SimulatedHost(1))
    earlier.rename(tmp_path / "gone")
    assert run(tmp_path / "new", config, SimulatedHost(1)).done


def test_other_data_than_the_earlier_sweep_had_is_refused(tmp_path: Path, earlier: Path) -> None:
    class Elsewhere(SimulatedHost):
        def admit(self, task: Any) -> str | None:
            super().admit(task)
            return "sha256:other"

    with pytest.raises(DataError, match="sha256:other instead of sha256:data"):
        run(tmp_path / "new", warm(earlier), Elsewhere(1))


def test_a_folder_without_a_sweep_and_a_searcher_that_learns_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"search.warm_start\[0\]: .*not a sweep's folder"):
        check_sweep(warm(tmp_path))
    search = {"name": "random", "trials": 3, "warm_start": (str(tmp_path),)}
    with pytest.raises(
        ConfigError, match=re.escape("search.warm_start needs search.name: optuna, but got random")
    ):
        check_sweep(sweep(search=search))
