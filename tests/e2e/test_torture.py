"""A sweep under ten SIGKILLs of its driver, hosts and tracking server; benchmarks/torture.py: a hundred."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks._torture import plan_kills
from benchmarks.torture import SEED, Plan, torture, undisturbed

SHORT = Plan(trials=10, steps=3000, peer_steps=0, kills=10, peer_kills=0, longest_s=1.0, slots=5)


@pytest.mark.slow
def test_ten_random_kills_lose_no_trial_and_change_nothing(tmp_path: Path) -> None:
    expected = undisturbed(SHORT, tmp_path)
    found, killed = torture(SHORT, tmp_path, expected)
    assert killed.total() == 10
    assert found.states == {"finished": 10}
    assert (found.lost, found.again, found.redone) == (0, 0, 0)
    assert found.same_table
    assert found.restarts >= 10, "no kill hit a running trial"
    assert (found.wrong_points, found.points > 0) == (0, True)


def test_a_plan_of_kills_is_the_same_for_the_same_seed_and_spares_nobody() -> None:
    kills = plan_kills(SEED, 100, 2.0)
    assert kills == plan_kills(SEED, 100, 2.0)
    assert {kill.victim for kill in kills} == {"driver", "host", "server"}
    assert {kill.victim for kill in plan_kills(SEED, SHORT.kills, 1.0)} == {"driver", "host", "server"}
