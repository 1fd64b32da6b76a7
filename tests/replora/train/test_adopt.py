"""A run that takes over another's checkpoints goes on as if it had trained them itself."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from replora.config import OptimPhase, RunConfig
from replora.fingerprint import fingerprint
from replora.methods.folder import load_adapter
from replora.train.adopt import adopt_checkpoints
from replora.train.checkpoint import newest_checkpoint, write_checkpoint
from replora.train.pack import Pack
from tests.contracts.packs import METHODS, base, run
from tests.replora.train.test_checkpoint import state


def test_an_adopted_checkpoint_is_the_other_runs_under_a_new_name(tmp_path: Path) -> None:
    for step in (10, 20):
        write_checkpoint(tmp_path / "a", state(step))
    copies = adopt_checkpoints(tmp_path / "a", tmp_path / "b", "other", at_most=15)
    assert [path.name for path in copies] == ["step-00000010.safetensors"]
    found = newest_checkpoint(tmp_path / "b", "other")
    assert found is not None
    assert (found.step, found.loss_sum, found.loss_count) == (10, 0.1, 3)
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in state(10).tensors.items())


def test_a_folder_with_checkpoints_of_its_own_is_left_alone(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a", state(10))
    adopt_checkpoints(tmp_path / "a", tmp_path / "b", "other", at_most=10)
    assert adopt_checkpoints(tmp_path / "a", tmp_path / "b", "third", at_most=10) == []
    assert newest_checkpoint(tmp_path / "b", "other") is not None


def test_a_checkpoint_without_a_readable_header_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_checkpoint(tmp_path / "a", state(10))
    write_checkpoint(tmp_path / "a", state(20)).write_bytes(b"\x05\0\0\0\0\0\0\0{torn")
    with caplog.at_level(logging.WARNING):
        copies = adopt_checkpoints(tmp_path / "a", tmp_path / "b", "other", at_most=20)
    assert [path.name for path in copies] == ["step-00000010.safetensors"]
    assert "step-00000020" in caplog.text


def test_a_copy_with_changed_rates_equals_the_same_run_trained_from_its_start(tmp_path: Path) -> None:
    parent = run(METHODS["replora"], steps=20, checkpoint_every=10)
    phase = OptimPhase(from_step=10, lr=3e-3, weight_decay=0.1)
    optim = parent.optim.model_copy(update={"phases": (phase,)})
    child = parent.model_copy(update={"optim": optim})
    names = {name: fingerprint(config) for name, config in (("parent", parent), ("child", child))}
    _train(parent, tmp_path / "parent", stop=10)
    adopt_checkpoints(
        tmp_path / "parent" / "checkpoints", tmp_path / "child" / "checkpoints", names["child"], at_most=10
    )
    assert _train(child, tmp_path / "child") == 10
    assert _train(child, tmp_path / "whole") == 20
    copied, whole = (load_adapter(tmp_path / name / "adapter").tensors for name in ("child", "whole"))
    assert all(torch.equal(copied[name], tensor) for name, tensor in whole.items())


def _train(config: RunConfig, folder: Path, stop: int | None = None) -> int:
    """Steps that were taken until the end, or until so many were done."""
    backbone, task = base(config)
    pack = Pack(config, backbone, task, slots=1)
    pack.admit(fingerprint(config), config, folder)
    steps = 0
    while pack.trials and steps != stop:
        pack.step()
        steps += 1
    return steps
