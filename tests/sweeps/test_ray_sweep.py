"""A real sweep on a real Ray: real trials, the real director and its ledger."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from replora.config import BackboneConfig, LoraMethod, RunConfig, TrainConfig
from sweeps.config import Domain, PrunerConfig, SweepConfig
from sweeps.director import Director
from sweeps.ledger import SweepView
from sweeps.ray_backend import run
from sweeps.resources import Layout
from tests.sweeps.simulated import begin

STEPS = 400


def sweep_of(steps: int, **options: object) -> SweepConfig:
    train = TrainConfig(steps=steps, batch=4, eval_every=steps // 10, checkpoint_every=steps // 10)
    base = RunConfig(backbone=BackboneConfig(weights="random"), method=LoraMethod(rank=2), train=train)
    space = {"optim.lr": Domain(values=(1e-4, 1e-3)), "optim.weight_decay": Domain(values=(0.0, 0.1))}
    return SweepConfig.model_validate({"name": "ray", "run": base, "space": space, **options})


def host_processes() -> list[int]:
    """Process ids of the hosts that this process's Ray runs now."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it ended meanwhile
            if "".join(process.cmdline()[:1]).startswith("ray::HostActor"):
                found.append(process.pid)
    return found


def states(view: SweepView) -> list[str]:
    return [trial.state for trial in view.trials.values()]


@pytest.mark.slow
def test_a_sweep_survives_the_sigkill_of_a_host_in_training(tmp_path: Path) -> None:
    config, killed = sweep_of(STEPS), list[int]()

    def kill_once() -> None:
        # Whichever host is killed at the first report has two trials to lose, however late the other came.
        if any(trial.reports for trial in director.view.trials.values()) and not killed:
            killed.append(min(host_processes()))
            os.kill(killed[0], signal.SIGKILL)

    with begin(tmp_path, config) as ledger:
        director = Director(config, ledger)
        run(director, tmp_path, Layout(2, 2, 1), on_idle=kill_once)
    assert killed
    assert states(director.view) == ["finished"] * 4
    trials = list(director.view.trials.values())
    assert sorted(trial.attempts for trial in trials) == [1, 1, 2, 2]
    every = STEPS // 10
    for trial in trials:
        assert [step for step, _ in trial.reports] == list(range(every, STEPS + 1, every))


def test_pruned_trials_of_a_real_sweep_free_their_slots(tmp_path: Path) -> None:
    config = sweep_of(20, pruner=PrunerConfig(name="asha", grace_steps=2, reduction=2))
    with begin(tmp_path, config) as ledger:
        director = Director(config, ledger)
        run(director, tmp_path, Layout(1, 2, 1))
    assert director.done
    assert "pruned" in states(director.view)
    assert set(states(director.view)) <= {"pruned", "finished"}
    assert host_processes() == []
