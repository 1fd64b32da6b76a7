"""Checkpoints: exact resume, damage found and survived, never another run's."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from replora.errors import CheckpointError
from replora.train.checkpoint import SlotState, newest_checkpoint, read_checkpoint, write_checkpoint
from replora.train.pack import Pack
from tests.contracts.packs import METHODS, RecordingTask, base, run


def state(step: int) -> SlotState:
    tensors = {"value/x": torch.arange(5.0), "first/x": torch.full((2, 2), step)}
    return SlotState("abc", step, 0.1, 3, tensors, ((4, {"accuracy": 1 / 3, "lr": 1e-4}),))


def test_a_checkpoint_reads_back_exactly(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, state(7))
    found = read_checkpoint(path)
    assert (found.fingerprint, found.step, found.loss_sum, found.loss_count) == ("abc", 7, 0.1, 3)
    assert found.reports == state(7).reports
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in state(7).tensors.items())


def test_only_the_two_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write_checkpoint(tmp_path, state(step))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "step-00000002.safetensors",
        "step-00000003.safetensors",
    ]


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "text"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    write_checkpoint(tmp_path, state(1))
    path = write_checkpoint(tmp_path, state(2))
    content = path.read_bytes()
    flipped = content[:-3] + bytes([content[-3] ^ 0x55]) + content[-2:]
    path.write_bytes({"truncate": content[:-9], "flip": flipped, "empty": b"", "text": b"hello" * 9}[damage])
    with caplog.at_level(logging.WARNING):
        found = newest_checkpoint(tmp_path, "abc")
    assert found is not None
    assert found.step == 1
    assert "step-00000002" in caplog.text


def test_a_checkpoint_that_is_replaced_while_it_is_read_gives_way_to_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = write_checkpoint(tmp_path, state(1))

    def overtaken(path: Path) -> SlotState:
        if path == old:
            write_checkpoint(tmp_path, state(2))
            old.unlink()
        return read_checkpoint(path)

    monkeypatch.setattr("replora.train.checkpoint.read_checkpoint", overtaken)
    found = newest_checkpoint(tmp_path, "abc")
    assert found is not None
    assert found.step == 2


def test_another_runs_checkpoint_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, state(1))
    with pytest.raises(CheckpointError, match="belongs to the run abc"):
        newest_checkpoint(tmp_path, "other")


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "missing", "abc") is None


@pytest.mark.parametrize("name", ["lora", "replora", "replora-dropout", "full"])
def test_resume_is_bit_exact(name: str, tmp_path: Path) -> None:
    config = run(METHODS[name], steps=20, checkpoint_every=8, precision="fp32")
    backbone, task = base(config)
    whole = RecordingTask(task)
    pack = Pack(config, backbone, whole, slots=1)
    pack.admit("t", config, tmp_path / "whole")
    while pack.trials:
        pack.step()
    first = Pack(config, backbone, task, slots=1)
    first.admit("t", config, tmp_path / "cut")
    for _ in range(11):
        first.step()
    resumed = RecordingTask(task)
    second = Pack(config, backbone, resumed, slots=1)
    second.admit("t", config, tmp_path / "cut")
    while second.trials:
        second.step()
    assert len(resumed.losses) == 12
    assert torch.equal(torch.stack(resumed.losses), torch.stack(whole.losses[8:]))
