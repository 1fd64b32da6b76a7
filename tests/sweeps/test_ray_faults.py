"""Trials that end their host's process or use up its memory, on a real Ray with the real director."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from replora.train.process import limit_memory
from sweeps.config import SweepConfig
from sweeps.director import Director
from sweeps.ledger import SweepView, read_lines
from sweeps.ray_backend.contract import HostFactory, HostPlan, Trainer
from tests.sweeps.simulated import SimulatedHost, begin, grid

CULPRIT = 1e-1
MEMORY: dict[str, Any] = {
    "run": {
        "backbone": {"weights": "random"},
        "method": {"name": "lora", "rank": 2},
        "train": {"steps": 2, "batch": 2048, "eval_every": 1, "checkpoint_every": 1},
    },
    "space": {"optim.lr": {"values": (1e-4, 2e-4, 3e-4, 4e-4)}},
    "max_failures": 0,
}
#: Enough for a quarter of a batch, too little for a whole one (500 MiB more were seen for that).
ROOM_GIB = 0.45


@pytest.fixture(scope="module")
def session() -> Iterator[Any]:
    from sweeps.ray_backend.session import Session

    with Session(hosts=2) as started:
        yield started


def run(
    session: Any, folder: Path, config: SweepConfig, plan: HostPlan, factory: HostFactory | None
) -> SweepView:
    from sweeps.ray_backend.drive import drive

    with begin(folder, config) as ledger:
        director = Director(config, ledger)
        drive(director, session, plan, None, factory)
        return director.view


class ExitingHost(SimulatedHost):
    """Its process exits in the step in which the culprit would report for the second time."""

    def step(self) -> Any:
        if any(task.config.optim.lr == CULPRIT and step == 50 for task, step in self._running.values()):
            os._exit(3)
        return super().step()


def exiting(slots: int, threads: int, device: str) -> Trainer:
    del threads, device
    return ExitingHost(slots)


def test_a_trial_that_exits_again_and_again_is_found_and_only_it_fails(session: Any, tmp_path: Path) -> None:
    config = grid(space={"optim.lr": {"values": (1e-3, 1e-2, CULPRIT, 2e-3)}}, max_failures=0)
    view = run(session, tmp_path, config, HostPlan(2, 2, 1, tmp_path), exiting)
    states = {trial.config["optim"]["lr"]: (trial.state, trial.kind) for trial in view.trials.values()}
    assert states.pop(CULPRIT) == ("failed", "lost")
    assert set(states.values()) == {("finished", "")}
    assert all("ended with" in line["reason"] for line in read_lines(tmp_path) if line["event"] == "failed")


def scarce(slots: int, threads: int, device: str) -> Trainer:
    """A real host that may allocate little more than it has when everything is loaded."""
    import torch

    from sweeps.host import Host

    host = Host(slots, threads, device)
    admit = host.admit

    def admit_first(task: Any) -> str | None:
        host.admit = admit  # type: ignore[method-assign]
        data = admit(task)
        torch.ones(64, 64) @ torch.ones(64, 64)  # libraries take their own memory with the first product
        used = re.search(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert used is not None
        limit_memory(int(used[1]) / 2**20 + ROOM_GIB)
        return data

    host.admit = admit_first  # type: ignore[method-assign]
    return host


@pytest.fixture(scope="module")
def plenty(session: Any, tmp_path_factory: pytest.TempPathFactory) -> SweepView:
    folder = tmp_path_factory.mktemp("plenty")
    return run(session, folder, grid(**MEMORY), HostPlan(1, 4, 1, folder), None)


def test_trials_that_memory_stopped_end_as_with_plenty_of_it(
    session: Any, plenty: SweepView, tmp_path: Path
) -> None:
    view = run(session, tmp_path, grid(**MEMORY), HostPlan(1, 4, 1, tmp_path), scarce)
    failures = [line for line in read_lines(tmp_path) if line["event"] == "failed"]
    assert list(view.trials) == list(plenty.trials)
    for name, trial in view.trials.items():
        assert (trial.state, trial.config) == ("finished", plenty.trials[name].config)
        assert trial.metrics["val_loss"] == pytest.approx(plenty.trials[name].metrics["val_loss"], rel=1e-4)
    assert {(line["kind"], line["counted"]) for line in failures} == {("out-of-memory", False)}
    assert "hosts train at most 2 trials at once from now on" in failures[0]["reason"]
    assert "goes on with micro-batches of" in failures[-1]["reason"]


def limit_of_this_process(slots: int, threads: int, device: str) -> Trainer:
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_DATA)
    return SimulatedHost(slots, lambda config, step: soft / 2**30)


def test_a_host_may_allocate_its_share_only(session: Any, tmp_path: Path) -> None:
    plan = HostPlan(1, 1, 1, tmp_path, memory_gib=3.0)
    view = run(session, tmp_path, grid(space={"optim.lr": {"values": (1e-3,)}}), plan, limit_of_this_process)
    assert [trial.objective for trial in view.trials.values()] == [3.0]
