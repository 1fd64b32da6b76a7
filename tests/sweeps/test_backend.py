from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from sweeps.backend import drive
from sweeps.director import Director
from sweeps.ledger import read_ledger, read_lines
from sweeps.resources import layout_of, trials_planned
from tests.sweeps.simulated import SimulatedHost, begin, grid, sweep


class SignallingHost(SimulatedHost):
    """Sends a signal to its own process in the middle of a step."""

    def __init__(self, slots: int, number: signal.Signals, at_step: int) -> None:
        super().__init__(slots)
        self._number, self._left = number, at_step

    def step(self) -> Any:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), self._number)
        return super().step()


def interrupted(folder: Path, number: signal.Signals) -> BaseException:
    with begin(folder, grid()) as ledger, pytest.raises(BaseException) as caught:  # noqa: PT011
        drive(Director(grid(), ledger), SignallingHost(2, number, at_step=3), lambda: None)
    return caught.value


def test_ctrl_c_lets_the_step_end_and_checkpoints_every_running_trial(tmp_path: Path) -> None:
    assert isinstance(interrupted(tmp_path, signal.SIGINT), KeyboardInterrupt)
    last = list(read_lines(tmp_path))[-2:]
    assert [(line["event"], line["step"]) for line in last] == [("checkpointed", 150)] * 2
    reports = {tuple(step for step, _ in trial.reports) for trial in read_ledger(tmp_path).trials.values()}
    assert reports == {(50, 100, 150)}


def test_sigterm_ends_with_its_status(tmp_path: Path) -> None:
    error = interrupted(tmp_path, signal.SIGTERM)
    assert isinstance(error, SystemExit)
    assert error.code == 128 + signal.SIGTERM


def test_the_handlers_of_signals_are_given_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    interrupted(tmp_path, signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_trial_that_could_not_start_is_not_recorded_as_started(tmp_path: Path) -> None:
    class Refusing(SimulatedHost):
        def admit(self, task: Any) -> str | None:
            super().admit(task)
            return None

    with begin(tmp_path, grid()) as ledger:
        drive(Director(grid(), ledger), Refusing(2), lambda: None)
    assert not [line for line in read_lines(tmp_path) if line["event"] == "started"]


def test_a_slot_is_filled_while_its_neighbours_run(tmp_path: Path) -> None:
    busy: list[int] = []

    class Watched(SimulatedHost):
        def step(self) -> Any:
            busy.append(self.slots - self.free)
            return super().step()

    config = sweep(confirm={})
    with begin(tmp_path, config) as ledger:
        drive(Director(config, ledger), Watched(4), lambda: None)
    ramp_down = busy[-4:]
    assert set(busy[:-4]) == {4}
    assert ramp_down == sorted(ramp_down, reverse=True)


# --- where trials run when nobody says ----------------------------------------------------------------


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(4)))


@pytest.mark.usefixtures("four_cores")
@pytest.mark.parametrize(
    ("changes", "layout"),
    [
        ({}, (4, 2, 1)),  # six trials on four hosts
        ({"seeds": tuple(range(20))}, (4, 15, 1)),  # 120 trials: 30 a host, in two even rounds
        ({"backend": "in-process"}, (1, 6, 4)),
        ({"resources": {"hosts": 2}}, (2, 3, 2)),
        ({"resources": {"hosts": 1, "slots": 1, "threads": 3}}, (1, 1, 3)),
        ({"space": {"optim.lr": {"values": (0.1, 0.2)}}}, (2, 1, 2)),  # no more hosts than trials
    ],
)
def test_the_rule_for_the_layout(changes: dict[str, Any], layout: tuple[int, int, int]) -> None:
    found = layout_of(grid(**changes))
    assert (found.hosts, found.slots, found.threads) == layout


def test_planned_trials_are_points_times_seeds_and_what_is_confirmed() -> None:
    assert trials_planned(grid(seeds=(0, 1), confirm={"top": 2, "seeds": (5, 6, 7)})) == 6 * 2 + 2 * 3
