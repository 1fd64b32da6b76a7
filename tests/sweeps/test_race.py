"""Adaptive seeds: who may still be the best gets more, who is not does not, and the intervals are honest."""

from __future__ import annotations

import random
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from replora.config import RunConfig
from replora.errors import ConfigError
from sweeps.best import select
from sweeps.check import check_sweep
from sweeps.config import ConfirmConfig, SweepConfig
from sweeps.groups import Group
from sweeps.interval import t_interval
from sweeps.ledger import SweepView, TrialView
from sweeps.objective import Objective
from sweeps.race import looks_of, run_race
from tests.sweeps.simulated import SimulatedHost, cut_and_compare, grid, run

SEEDS = tuple(range(1, 11))
LRS = (1e-4, 1e-3, 3e-3, 1e-2)
QUALITY = dict(zip(LRS, (0.1, 0.8, 0.802, 0.801), strict=True))


def raced(**changes: Any) -> SweepConfig:
    """Four learning rates of which three are about equal."""
    space = {"optim.lr": {"values": LRS}}
    return grid(**{"space": space, "confirm": {"top": 4, "seeds": SEEDS, "start": 3}, **changes})


def noisy(config: RunConfig, step: int) -> float:
    draw = random.Random(f"{config.optim.lr} {config.seed}")
    return QUALITY[config.optim.lr] + draw.gauss(0, 0.01) - 0.1 * (1 - step / config.train.steps)


def seeds_of(view: SweepView) -> dict[float, int]:
    counts = dict.fromkeys(LRS, 0)
    for trial in view.trials.values():
        counts[float(trial.point["optim.lr"])] += trial.stage == "confirm"
    return counts


def test_only_contenders_get_more_seeds(tmp_path: Path) -> None:
    view = run(tmp_path, raced(), SimulatedHost(2, noisy)).view
    counts = seeds_of(view)
    assert counts[1e-4] == 3
    assert max(counts.values()) == 10


def test_the_best_is_one_of_those_that_stayed_and_the_dropped_say_when(tmp_path: Path) -> None:
    selection = select(run(tmp_path, raced(), SimulatedHost(2, noisy)).view)
    assert selection.best is not None
    assert len(selection.best.values) == 10
    last = selection.contenders[-1]
    assert (last.group.point["optim.lr"], last.verdict) == (1e-4, "worse")
    assert last.words == "dropped by the race after 3 seeds"
    assert "Means over 3 to 10 fresh seeds (more for those that may be the best)" in selection.note


def test_intervals_are_widened_for_every_look(tmp_path: Path) -> None:
    best = select(run(tmp_path, raced(), SimulatedHost(2, noisy)).view).best
    assert best is not None
    assert best.interval is not None
    values = list(best.values.values())
    plain = t_interval(values)
    assert best.interval.low < plain.low < plain.high < best.interval.high
    assert "widened for 8 looks" in best.interval.basis


def test_a_race_ends_when_one_is_left(tmp_path: Path) -> None:
    far = dict(zip(LRS, (0.1, 0.2, 0.3, 0.9), strict=True))

    def apart(config: RunConfig, step: int) -> float:
        return far[config.optim.lr] + random.Random(f"{config.seed} {config.optim.lr}").gauss(0, 1e-3)

    assert set(seeds_of(run(tmp_path, raced(), SimulatedHost(2, apart)).view).values()) == {3}


def test_a_race_cut_at_any_line_asks_the_same_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda handle: None)
    cut_and_compare(tmp_path, raced(), lambda saved: SimulatedHost(1, noisy, saved=saved), every=7)


def entrants(rng: random.Random, count: int) -> list[Group]:
    """Configurations that are all equally good, with all their seeds."""
    groups = []
    for number in range(count):
        trials = [
            TrialView(
                f"{number}-{seed}", number, "confirm", "finished", {}, {}, seed, objective=rng.gauss(0, 1)
            )
            for seed in SEEDS
        ]
        searched = TrialView(f"{number}", number, "search", "finished", {}, {}, 0, objective=0.0)
        groups.append(Group({"n": number}, {}, [searched], trials))
    return groups


def test_of_equals_one_is_rarely_dropped() -> None:
    confirm = ConfirmConfig(top=4, seeds=SEEDS, start=3)
    rng = random.Random(7)
    objective = Objective("accuracy", "maximize")
    dropped = sum(0 in run_race(entrants(rng, 4), confirm, objective).dropped for _ in range(200))
    assert dropped <= 10  # 5 % of 200


def test_without_start_all_seeds_come_at_once() -> None:
    confirm = ConfirmConfig(top=2, seeds=(1, 2, 3))
    group = Group({}, {}, [TrialView("a", 0, "search", "finished", {}, {}, 0, objective=1.0)])
    assert run_race([group], confirm, Objective("accuracy", "maximize")).wanted == ((group, (1, 2, 3)),)
    assert looks_of(confirm) == 1


def test_a_start_that_leaves_no_race_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"confirm.start must be below the number of confirm.seeds, 10"):
        check_sweep(raced(confirm={"top": 4, "seeds": SEEDS, "start": 10}))


def test_means_of_the_survivors_are_over_all_their_seeds(tmp_path: Path) -> None:
    view = run(tmp_path, raced(), SimulatedHost(2, noisy)).view
    best = select(view).best
    assert best is not None
    fresh = [t.objective for t in best.group.confirm if t.objective is not None]
    assert best.mean == pytest.approx(fmean(fresh))
