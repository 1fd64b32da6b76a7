"""What does not fit a machine is narrowed or refused before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.hardware import Figure, Hardware, load_hardware
from replora.errors import PlanError
from replora.load import run_from
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
    return Hardware(name="made", summary="", gpus=0, host_memory_gib=figure, cores=4, heap="jemalloc")


def sweep(backbone: str = "vit-s16", space: dict[str, Any] | None = None, **resources: Any) -> SweepConfig:
    """Four learning rates of a ViT on images, or another space."""
    rates = {"optim.lr": [1e-4, 2e-4, 3e-4, 4e-4]}
    return SweepConfig.model_validate(
        {
            "name": "made",
            "run": {
                "backbone": {"name": backbone, "weights": "random"},
                "task": {"name": "image-folder", "root": "/images"},
            },
            "space": {key: {"values": values} for key, values in (space or rates).items()},
            "resources": resources,
        }
    )


def test_what_fits_stays_as_it_was() -> None:
    wished = Layout(2, 4, 1)
    assert placed(sweep(), wished, machine(64)).layout == wished


def test_slots_are_lowered_before_hosts() -> None:
    found = placed(sweep(), Layout(2, 4, 1), machine(5.5)).layout
    assert found.hosts == 2
    assert found.slots < 4


def test_hosts_are_lowered_where_one_slot_is_too_much_for_all() -> None:
    assert placed(sweep(), Layout(4, 1, 1), machine(4)).layout.hosts < 4


def test_a_gpu_is_not_shared_by_the_hosts() -> None:
    wished = Layout(4, 1, 1)
    assert placed(sweep(), wished, machine(4, gpus=4)).layout == wished


def test_what_cannot_fit_is_refused_with_what_would() -> None:
    with pytest.raises(PlanError, match=r"GiB on a machine with 1\.0 GiB") as caught:
        placed(sweep(), Layout(1, 1, 1), machine(1))
    assert "run.train.micro_batch" in str(caught.value)


def test_the_largest_member_of_the_space_decides() -> None:
    ranks: dict[str, Any] = {"train.batch": [4, 64, 16], "method.rank": [4, 64]}
    base = placed(sweep(), Layout(1, 4, 1), machine(9))
    found = placed(sweep(space=ranks), Layout(1, 4, 1), machine(9))
    assert found.layout.slots < base.layout.slots == 4
    assert found.member is not None
    assert found.member.point == {"train.batch": 64, "method.rank": 64}
    assert found.needed_gib <= found.available_gib < 9.1


def test_a_member_that_does_not_fit_alone_is_named_with_what_would_do() -> None:
    space: dict[str, Any] = {"method.name": ["lora", "full"], "train.batch": [8, 16, 64]}
    with pytest.raises(PlanError) as caught:
        placed(sweep(space=space), Layout(1, 4, 1), machine(3))
    text = str(caught.value)
    assert "1 trial of method.name=full, train.batch=64 needs 5." in text
    assert text.endswith("Set run.train.micro_batch to 16, or leave 64 out of space.train.batch.")
    placed(sweep(space={**space, "train.batch": [8, 16]}), Layout(1, 4, 1), machine(3))


def test_on_several_gpus_a_refusal_says_how_many_a_trial_would_take() -> None:
    config = SweepConfig.model_validate(
        {
            "name": "made",
            "run": {
                "backbone": {"name": "llama-13b"},
                "task": {"name": "commonsense", "root": "/texts", "eval_batch": 4},
                "train": {"precision": "bf16"},
            },
            "space": {"method.rank": {"values": [8, 32]}},
        }
    )
    with pytest.raises(PlanError, match=r"run\.engine\.ranks=2 run\.engine\.zero=3") as caught:
        placed(config, Layout(4, 1, 1), load_hardware("4xa10g"))
    words = [word for word in str(caught.value).rstrip(".").split() if word.startswith("run.")]
    parts = (word.removeprefix("run.").partition("=") for word in words)
    changes: dict[str, Any] = {key: yaml.safe_load(value) for key, _, value in parts}
    run = run_from(config.run, changes)
    placed(config.model_copy(update={"run": run}), Layout(2, 1, 1), load_hardware("4xa10g"))


def test_slots_that_the_file_demands_are_refused_with_how_many_would_do() -> None:
    with pytest.raises(PlanError, match=r"Lower resources\.slots to [1-7], or") as caught:
        placed(sweep(slots=8), Layout(1, 8, 1), machine(3))
    assert "8 trials of the base run" in str(caught.value)


def test_a_host_may_come_to_hold_every_backbone_of_the_space() -> None:
    one, two = (
        placed(sweep(space={"backbone.name": names}), Layout(1, 2, 1), machine(64)).needed_gib
        for names in (["vit-l16"], ["vit-l16", "vit-b16"])
    )
    assert two - one == pytest.approx(4 * 85_798_656 / 2**30, rel=0.01)  # the weights of the second


def test_hosts_that_the_file_demands_are_refused_not_lowered() -> None:
    with pytest.raises(PlanError, match=r"Lower resources\.hosts to"):
        placed(sweep(hosts=8), Layout(8, 1, 1), machine(6))


def test_sizes_that_are_not_known_are_left_to_the_hosts() -> None:
    wished = Layout(8, 8, 1)
    assert placed(sweep("timm/vit_base_patch16_clip_224"), wished, machine(1)).layout == wished


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
