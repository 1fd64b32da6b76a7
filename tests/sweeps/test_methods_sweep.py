"""One sweep over four families of methods, each with a size of its own: in process and on Ray."""

from __future__ import annotations

from pathlib import Path

import pytest

from replora.config import BackboneConfig, RunConfig, TrainConfig
from replora.methods.folder import load_adapter
from sweeps import backend, ray_backend
from sweeps.config import Domain, SweepConfig
from sweeps.director import Director
from sweeps.resources import Layout
from sweeps.views import SweepView
from tests.sweeps.simulated import begin

METHODS = ("lora", "replora", "adapter", "prefix")
SIZES: dict[str, dict[str, object]] = {
    "lora": {"rank": 4, "targets": ("query", "value")},
    "replora": {"rank": 4, "hidden": 16},
    "adapter": {"bottleneck": 5, "targets": ("down",)},
    "prefix": {"tokens": 3, "made": "direct"},
}


def sweep() -> SweepConfig:
    train = TrainConfig(steps=6, batch=4, eval_every=3, checkpoint_every=3)
    space = {
        "method.name": Domain(values=METHODS),
        "method.rank": Domain(values=(4,), when={"method.name": ("lora", "replora")}),
        "method.bottleneck": Domain(values=(5,), when={"method.name": ("adapter",)}),
        "method.tokens": Domain(values=(3,), when={"method.name": ("prefix",)}),
        "optim.lr": Domain(values=(1e-3, 1e-2)),
    }
    base = RunConfig(backbone=BackboneConfig(weights="random"), train=train)
    return SweepConfig(name="methods", run=base, space=space)


def outcome(folder: Path, *, on_ray: bool) -> SweepView:
    """The view after a sweep of eight trials on one host of four slots."""
    with begin(folder, sweep()) as ledger:
        director = Director(sweep(), ledger)
        run = ray_backend.run if on_ray else backend.run
        run(director, folder, Layout(1, 4, 1))
        return director.view


def test_a_sweep_of_four_families_finishes_and_keeps_their_own_defaults(tmp_path: Path) -> None:
    view = outcome(tmp_path, on_ray=False)
    assert [trial.state for trial in view.trials.values()] == ["finished"] * 8
    for trial in view.trials.values():
        method = trial.config["method"]
        assert trial.adapter is not None
        saved = load_adapter(tmp_path / trial.adapter).config.method
        for field, value in SIZES[method["name"]].items():
            assert getattr(saved, field) == value
    assert {trial.config["method"]["name"] for trial in view.trials.values()} == set(METHODS)


@pytest.mark.slow
def test_a_sweep_of_four_families_has_the_same_results_on_ray(tmp_path: Path) -> None:
    views = [outcome(tmp_path / name, on_ray=name == "ray") for name in ("here", "ray")]
    results = [{name: trial.objective for name, trial in view.trials.items()} for view in views]
    assert None not in results[0].values()
    assert results[0] == results[1]
