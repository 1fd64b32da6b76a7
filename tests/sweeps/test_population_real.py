"""Population-based training of real trials, packed, on both backends: its result is its schedule's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from replora.config import BackboneConfig, LoraMethod, RunConfig, TrainConfig
from replora.fingerprint import fingerprint
from replora.methods.folder import load_adapter
from sweeps import backend, ray_backend
from sweeps.best import select
from sweeps.config import SweepConfig
from sweeps.director import Director
from sweeps.host import Host
from sweeps.ledger import SweepView
from sweeps.resources import Layout
from tests.sweeps.scripted import ScriptedTask
from tests.sweeps.simulated import begin

STEPS, EVERY = 12, 4


def population() -> SweepConfig:
    train = TrainConfig(steps=STEPS, batch=4, eval_every=EVERY, checkpoint_every=EVERY, precision="fp64")
    base = RunConfig(backbone=BackboneConfig(weights="random"), method=LoraMethod(rank=2), train=train)
    space = {"optim.lr": {"log_uniform": (1e-4, 3e-3)}, "optim.weight_decay": {"log_uniform": (1e-4, 1e-1)}}
    search = {"name": "pbt", "trials": 4, "population": {"every": EVERY, "replace": 0.5}}
    return SweepConfig.model_validate(
        {"name": "pbt", "run": base, "space": space, "search": search, "objective": {"metric": "val_loss"}}
    )


def check(folder: Path, view: SweepView) -> None:
    """Copies were made, the population stayed whole, and every copy equals its run trained alone."""
    copies = [trial for trial in view.trials.values() if trial.parent]
    assert len(copies) == 4  # two of four, after 4 and after 8 steps
    assert sum(trial.state == "finished" for trial in view.trials.values()) == 4
    best = select(view).best
    assert best is not None
    for trial in copies:
        if trial.state == "finished":
            first = next(step for step, _ in trial.reports)
            assert first > trial.parent_step, "it was trained from its start"
    last = max((trial for trial in copies if trial.state == "finished"), key=lambda trial: trial.number)
    run = RunConfig.model_validate(last.config)
    alone = trained(run, folder / "alone")
    packed = load_adapter(folder / "trials" / last.fingerprint / "adapter").tensors
    for name, tensor in alone.items():
        assert torch.allclose(packed[name], tensor, rtol=0, atol=1e-10), name


def trained(run: RunConfig, folder: Path) -> dict[str, torch.Tensor]:
    host = Host(1, 1)
    host.admit(ScriptedTask(fingerprint(run), run, folder, 1))
    while host.busy:
        host.step()
    return load_adapter(folder / "adapter").tensors


def test_a_packed_population_in_this_process(tmp_path: Path) -> None:
    with begin(tmp_path, population()) as ledger:
        director = Director(population(), ledger)
        backend.run(director, tmp_path, Layout(1, 4, 1))
        check(tmp_path, director.view)


@pytest.mark.slow
def test_a_packed_population_on_ray(tmp_path: Path) -> None:
    with begin(tmp_path, population()) as ledger:
        director = Director(population(), ledger)
        ray_backend.run(director, tmp_path, Layout(2, 2, 1))
        check(tmp_path, director.view)
