"""Whose fault a failure is: whole sweeps on hosts that one trial ends, or that run out of memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from replora.config import RunConfig
from replora.train.events import Event, Failed, FailureKind
from sweeps.director import Director, TrialTask
from sweeps.ledger import read_lines
from sweeps.retries import smaller_micro_batch
from tests.sweeps.simulated import EVERY, SimulatedHost, begin, grid, run, sweep

CULPRIT = 1e-1  # learning rate of the trial that spoils its host
ONE_CULPRIT = {"optim.lr": {"values": (1e-3, 1e-2, CULPRIT, 2e-3, 3e-3, 4e-3)}}


class SpoiledHost(SimulatedHost):
    """All its trials fail together whenever `spoils` says so of one of them.

    Attributes:
        together: Sizes of the packs that failed.
        micro_batches: Those of the tasks that were admitted.
    """

    def __init__(self, slots: int, kind: FailureKind, spoils: Callable[[RunConfig, int, int], bool]) -> None:
        super().__init__(slots)
        self.kind = kind
        self.spoils = spoils
        self.together: list[int] = []
        self.micro_batches: list[int | None] = []

    def admit(self, task: TrialTask) -> str | None:
        self.micro_batches.append(task.micro_batch)
        return super().admit(task)

    def step(self) -> list[Event]:
        running = list(self._running.items())
        width = len(running)
        if not any(self.spoils(task.config, before + EVERY, width) for _, (task, before) in running):
            return super().step()
        self.together.append(width)
        for trial, _ in running:
            self.withdraw(trial)
        return [Failed(trial, before, self.kind, "spoiled", width - 1) for trial, (_, before) in running]


def is_culprit(config: RunConfig, step: int, width: int) -> bool:
    del width
    return config.optim.lr == CULPRIT and step == 100


def states(director: Director) -> dict[float, str]:
    return {trial.config["optim"]["lr"]: trial.state for trial in director.view.trials.values()}


def attempts(director: Director) -> dict[float, int]:
    return {trial.config["optim"]["lr"]: trial.attempts for trial in director.view.trials.values()}


# --- suspects ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lost", "error"])
@pytest.mark.parametrize("max_failures", [0, 2])
def test_only_the_trial_that_spoils_its_neighbours_fails(
    tmp_path: Path, kind: FailureKind, max_failures: int
) -> None:
    host = SpoiledHost(3, kind, is_culprit)
    director = run(tmp_path, grid(space=ONE_CULPRIT, max_failures=max_failures), host)
    found = states(director)
    assert found.pop(CULPRIT) == "failed"
    assert set(found.values()) == {"finished"}


def test_a_culprit_is_found_alone_after_two_losses_with_others(tmp_path: Path) -> None:
    host = SpoiledHost(3, "lost", is_culprit)
    run(tmp_path, grid(space=ONE_CULPRIT, max_failures=1), host)
    assert host.together[:2] == [3, 3]
    assert set(host.together[2:]) == {1}


def test_a_failure_beside_others_is_recorded_and_not_counted(tmp_path: Path) -> None:
    run(tmp_path, grid(space=ONE_CULPRIT), SpoiledHost(3, "lost", is_culprit))
    failures = [line for line in read_lines(tmp_path) if line["event"] == "failed"]
    assert all(line["reason"] == "spoiled" for line in failures)
    assert {(line["beside"] > 0, line["counted"]) for line in failures} >= {(True, False), (False, True)}
    assert not any(line["counted"] for line in failures if line["beside"])


def test_who_got_further_between_two_losses_is_no_suspect(tmp_path: Path) -> None:
    """A machine that is taken away at every step still lets trials through that checkpoint in between."""
    losses = iter([False, True] * 100)
    host = SpoiledHost(6, "lost", lambda config, step, width: config.optim.lr == 1e-3 and next(losses))
    director = run(tmp_path, grid(space=ONE_CULPRIT, max_failures=0), host)
    assert set(states(director).values()) == {"finished"}
    assert min(host.together) > 1
    assert max(attempts(director).values()) > 2


def test_a_suspect_waits_until_its_host_is_empty(tmp_path: Path) -> None:
    host = SpoiledHost(3, "lost", is_culprit)
    beside: list[int] = []
    admit = host.admit
    host.admit = lambda task: (beside.append(len(host.trials)) if task.alone else None, admit(task))[1]  # type: ignore[func-returns-value,method-assign]
    run(tmp_path, grid(space=ONE_CULPRIT, max_failures=1), host)
    assert len(beside) >= 3
    assert set(beside) == {0}


def test_suspicion_survives_a_crash(tmp_path: Path) -> None:
    with begin(tmp_path, grid(space=ONE_CULPRIT)) as ledger:
        director = Director(grid(space=ONE_CULPRIT), ledger)
        for _ in range(2):
            tasks = [task for task in (director.ask(), director.ask()) if task]
            for task in tasks:
                director.started(task.fingerprint, "host")
            director.handle_all([Failed(task.fingerprint, 0, "lost", "gone", 1) for task in tasks])
    with begin(tmp_path, grid(space=ONE_CULPRIT)) as ledger:
        again = Director(grid(space=ONE_CULPRIT), ledger)
        asked = [task for task in (again.ask(empty=False) for _ in range(9)) if task]
        assert len(asked) == 4
        assert again.ask(empty=False) is None
        suspect = again.ask(empty=True)
        assert suspect is not None
        assert suspect.alone
        assert suspect.fingerprint == tasks[0].fingerprint


# --- memory -----------------------------------------------------------------------------------------


def fits(width: int, micro_batch: int) -> Callable[[SpoiledHost], Callable[[RunConfig, int, int], bool]]:
    """Memory for so many trials at once with so many examples each."""

    def too_much(host: SpoiledHost) -> Callable[[RunConfig, int, int], bool]:
        def spoils(config: RunConfig, step: int, running: int) -> bool:
            micro = host.micro_batches[-1] or config.train.batch
            return running > width or micro > micro_batch

        return spoils

    return too_much


def memory_host(slots: int, width: int, micro_batch: int) -> SpoiledHost:
    host = SpoiledHost(slots, "out-of-memory", is_culprit)
    host.spoils = fits(width, micro_batch)(host)
    return host


def test_running_out_of_memory_narrows_packs_until_they_fit(tmp_path: Path) -> None:
    host = memory_host(6, 2, 16)
    director = run(tmp_path, grid(space=ONE_CULPRIT, max_failures=0), host)
    assert set(states(director).values()) == {"finished"}
    assert host.together == [6, 3]
    assert director.limits.width == 1


def test_a_trial_that_is_too_large_alone_goes_on_with_smaller_micro_batches(tmp_path: Path) -> None:
    host = memory_host(2, 1, 4)
    director = run(tmp_path, grid(space=ONE_CULPRIT, max_failures=0), host)
    assert set(states(director).values()) == {"finished"}
    assert [micro for micro in host.micro_batches if micro][:2] == [8, 4]
    assert set(director.limits.micro_batches.values()) == {4}
    assert {trial.config["train"]["micro_batch"] for trial in director.view.trials.values()} == {None}


def test_ranks_still_share_smaller_micro_batches_evenly(tmp_path: Path) -> None:
    base = sweep().run.model_dump(mode="json")
    shared = {**base, "engine": {"ranks": 2}, "train": {**base["train"], "batch": 30, "micro_batch": 15}}
    host = memory_host(1, 1, 5)
    run(tmp_path, grid(space={"optim.lr": {"values": (1e-3,)}}, run=shared, max_failures=0), host)
    assert host.micro_batches == [None, 5], "6 divides the batch, but not a rank's half of it"


def test_only_what_does_not_fit_with_single_examples_fails(tmp_path: Path) -> None:
    director = run(tmp_path, grid(space=ONE_CULPRIT, max_failures=0), memory_host(2, 1, 0))
    trials = director.view.trials.values()
    assert {(trial.state, trial.kind) for trial in trials} == {("failed", "out-of-memory")}


def test_a_failure_says_what_is_lowered(tmp_path: Path) -> None:
    run(tmp_path, grid(space=ONE_CULPRIT), memory_host(2, 1, 8))
    reasons = [line["reason"] for line in read_lines(tmp_path) if line["event"] == "failed"]
    assert "hosts train at most 1 trials at once from now on" in reasons[0]
    assert "goes on with micro-batches of 8, accumulated to the same batch" in reasons[-1]


def test_limits_survive_a_crash(tmp_path: Path) -> None:
    director = run(tmp_path, grid(space=ONE_CULPRIT), memory_host(2, 1, 8))
    with begin(tmp_path, grid(space=ONE_CULPRIT)) as ledger:
        assert Director(grid(space=ONE_CULPRIT), ledger).limits == director.limits


def test_limits_of_an_earlier_sweep_hold_from_the_start(tmp_path: Path) -> None:
    limits = run(tmp_path / "before", grid(space=ONE_CULPRIT), memory_host(2, 1, 8)).limits
    with begin(tmp_path / "after", grid(space=ONE_CULPRIT)) as ledger:
        known: dict[str, Any] = {"width": limits.width, "micro_batches": dict(limits.micro_batches)}
        ledger.append("limited", None, **known, reason="remembered")
    host = memory_host(2, 1, 8)
    run(tmp_path / "after", grid(space=ONE_CULPRIT), host)
    assert host.together == []


@pytest.mark.parametrize(
    ("batch", "micro_batch", "expected"), [(16, 16, 8), (12, 6, 3), (12, 3, 1), (15, 15, 5), (7, 1, None)]
)
def test_a_smaller_micro_batch_divides_the_batch(batch: int, micro_batch: int, expected: int | None) -> None:
    assert smaller_micro_batch(batch, micro_batch) == expected
