from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest

from sweeps.config import PrunerConfig
from sweeps.pruner import Asha, Median, make_pruner

Direction = Literal["maximize", "minimize"]


def ray_scheduler(grace: int, steps: int, reduction: int, mode: str) -> Any:
    from ray.tune.schedulers import AsyncHyperBandScheduler

    return AsyncHyperBandScheduler(
        time_attr="step", metric="m", mode=mode, max_t=steps, grace_period=grace,
        reduction_factor=reduction, brackets=1,
    )  # fmt: skip


class RayTrial:
    """All that the scheduler reads of a trial."""

    def __init__(self, name: str) -> None:
        self.trial_id = name


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
@pytest.mark.parametrize(
    ("grace", "every", "reduction"), [(50, 50, 3), (10, 10, 2), (25, 75, 2), (30, 200, 4)]
)
def test_asha_decides_as_ray_does_on_the_same_reports(
    direction: Direction, grace: int, every: int, reduction: int
) -> None:
    steps, rng = 800, np.random.default_rng(3)
    theirs = ray_scheduler(grace, steps, reduction, direction[:3])
    ours = Asha(grace, reduction, direction)
    trials = {f"t{index}": RayTrial(f"t{index}") for index in range(40)}
    for trial in trials.values():
        theirs.on_trial_add(None, trial)
    done = dict.fromkeys(trials, 0)
    stopped: dict[str, list[str]] = {"ours": [], "theirs": []}
    while done:
        name = str(rng.choice(list(done)))
        done[name] += every
        if done[name] >= steps:
            del done[name]  # the last step ends the trial by itself
            continue
        value = round(float(rng.normal()), 1)  # rounded, so that ties occur
        verdict = theirs.on_trial_result(None, trials[name], {"step": done[name], "m": value})
        if verdict == "STOP":
            stopped["theirs"].append(f"{name}@{done[name]}")
        if ours.stops(name, done[name], value):
            stopped["ours"].append(f"{name}@{done[name]}")
        if verdict == "STOP":
            del done[name]
    assert stopped["ours"] == stopped["theirs"]
    assert len(stopped["ours"]) > 5


def test_asha_lets_the_first_at_a_rung_go_on() -> None:
    assert Asha(50, 3, "maximize").stops("a", 50, -1e9) == ""


def test_asha_says_where_and_against_whom_a_trial_lost() -> None:
    pruner = Asha(50, 2, "maximize")
    pruner.stops("a", 50, 1.0)
    assert pruner.stops("b", 50, 0.5) == "below the best 1/2 of 1 at rung 50 (step 50)"


def test_asha_asks_nothing_before_its_grace() -> None:
    pruner = Asha(50, 2, "maximize")
    pruner.stops("a", 49, 1.0)
    assert pruner.stops("b", 49, 0.0) == ""


def test_the_median_rule_stops_the_worse_half_once_enough_have_reported() -> None:
    pruner = Median(10, "minimize")
    for index in range(4):
        assert pruner.stops(f"t{index}", 10, float(index)) == ""
    assert pruner.stops("good", 10, 0.5) == ""
    assert pruner.stops("bad", 10, 5.0) == "worse than the median of 5 others at step 10"


def test_the_median_rule_waits_for_its_grace() -> None:
    pruner = Median(10, "maximize")
    assert [pruner.stops(f"t{index}", 5, -float(index)) for index in range(8)] == [""] * 8


def test_no_pruner_stops_nothing() -> None:
    pruner = make_pruner(PrunerConfig(), "maximize")
    assert [pruner.stops(f"t{index}", 50, -float(index)) for index in range(8)] == [""] * 8
