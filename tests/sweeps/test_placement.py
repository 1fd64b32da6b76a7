"""What does not fit a machine is narrowed or refused before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.hardware import Figure, Hardware
from replora.errors import PlanError
from sweeps.config import SweepConfig
from sweeps.ledger import LEDGER_NAME
from sweeps.placement import placed
from sweeps.resources import Layout
from sweeps.run import run_sweep


def machine(gib: float, gpus: int = 0) -> Hardware:
    """A machine with so much memory, or so much on each GPU."""
    figure = Figure(value=gib, mark="choice", source="made for this test")
    if gpus:
        return Hardware(name="made", summary="", gpus=gpus, memory_gib=figure, host_memory_gib=figure)
    return Hardware(name="made", summary="", gpus=0, host_memory_gib=figure, cores=4)


def sweep(backbone: str = "vit-s16", **resources: Any) -> SweepConfig:
    """Four learning rates of a ViT on images."""
    return SweepConfig.model_validate(
        {
            "name": "made",
            "run": {
                "backbone": {"name": backbone, "weights": "random"},
                "task": {"name": "image-folder", "root": "/images"},
            },
            "space": {"optim.lr": {"values": [1e-4, 2e-4, 3e-4, 4e-4]}},
            "resources": resources,
        }
    )


def test_what_fits_stays_as_it_was() -> None:
    wished = Layout(2, 4, 1)
    assert placed(sweep(), wished, machine(64)) == wished


def test_slots_are_lowered_before_hosts() -> None:
    found = placed(sweep(), Layout(2, 4, 1), machine(5.5))
    assert found.hosts == 2
    assert found.slots < 4


def test_hosts_are_lowered_where_one_slot_is_too_much_for_all() -> None:
    assert placed(sweep(), Layout(4, 1, 1), machine(4)).hosts < 4


def test_a_gpu_is_not_shared_by_the_hosts() -> None:
    wished = Layout(4, 1, 1)
    assert placed(sweep(), wished, machine(4, gpus=4)) == wished


def test_what_cannot_fit_is_refused_with_what_would() -> None:
    with pytest.raises(PlanError, match=r"GiB on a machine with 1\.0 GiB") as caught:
        placed(sweep(), Layout(1, 1, 1), machine(1))
    assert "micro-batch" in str(caught.value)


def test_hosts_that_the_file_demands_are_refused_not_lowered() -> None:
    with pytest.raises(PlanError, match=r"Lower resources\.hosts"):
        placed(sweep(hosts=8), Layout(8, 1, 1), machine(6))


def test_sizes_that_are_not_known_are_left_to_the_hosts() -> None:
    wished = Layout(8, 8, 1)
    assert placed(sweep("timm/vit_base_patch16_clip_224"), wished, machine(1)) == wished


def test_a_refused_sweep_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.placement.hardware_here", lambda visible: machine(1))
    images = tmp_path / "images"
    images.mkdir()
    config = sweep()
    task = config.run.task.model_copy(update={"root": images})
    config = config.model_copy(update={"run": config.run.model_copy(update={"task": task})})
    with pytest.raises(PlanError):
        run_sweep(config, tmp_path / "sweep")
    assert not (tmp_path / "sweep" / LEDGER_NAME).exists()
