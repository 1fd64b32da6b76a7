"""A calibration replaces the usual reserve, and is remembered for the runs that it speaks of."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from cluster.anatomy import anatomy_of
from cluster.calibration import Peak, calibrate, kept_share, remember, remembered
from cluster.here import hardware_here
from cluster.memory import Setting, memory_of
from replora.config import BackboneConfig, LoraMethod, RunConfig, TrainConfig
from replora.errors import MachineError
from replora.train.heap import Heap


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("REPLORA_CACHE", str(tmp_path))
    return tmp_path


RUN = RunConfig(backbone=BackboneConfig(name="vit-s16", weights="random"), train=TrainConfig(batch=8))


def peak_of(run: RunConfig, kept: float) -> Peak:
    """What a process would hold whose allocator keeps so much on top."""
    memory = memory_of(run, anatomy_of(run), Setting(run.train.batch, 197), "cpu")
    trained = memory.activations + memory.temporaries
    held = memory.runtime + memory.model - memory.passing + (1 + kept) * trained
    return Peak("cpu", int(held), "jemalloc")


def test_the_share_is_what_was_held_over_the_tensors() -> None:
    assert kept_share(RUN, anatomy_of(RUN), peak_of(RUN, 0.4)) == pytest.approx(0.4, abs=1e-6)


def test_a_process_that_held_less_than_its_tensors_keeps_nothing() -> None:
    assert kept_share(RUN, anatomy_of(RUN), Peak("cpu", 0, "jemalloc")) == 0


def test_a_run_too_small_to_tell_is_not_remembered(own_cache: Path) -> None:
    assert remember(RunConfig(), Peak("cpu", 2**30, "jemalloc")) is None
    assert remembered(RunConfig(), "cpu", "jemalloc") is None


def test_a_share_is_remembered_for_other_sizes_and_not_for_other_methods(own_cache: Path) -> None:
    remember(RUN, peak_of(RUN, 0.4))
    wider = RUN.model_copy(update={"train": TrainConfig(batch=16), "seed": 3})
    assert remembered(wider, "cpu", "jemalloc") == pytest.approx(0.4, abs=1e-6)
    assert remembered(RUN.model_copy(update={"method": LoraMethod()}), "cpu", "jemalloc") is None
    assert remembered(RUN, "gpu", "jemalloc") is None
    assert remembered(RUN, "cpu", "glibc") is None


def test_a_damaged_note_counts_as_none(own_cache: Path) -> None:
    remember(RUN, peak_of(RUN, 0.4))
    for note in own_cache.glob("memory-*.json"):
        note.write_text('{"kept": NaN, "device": "cpu", "heap": "jemalloc"}')
    assert remembered(RUN, "cpu", "jemalloc") is None


def test_a_calibrated_share_is_part_of_what_is_needed() -> None:
    setting = Setting(8, 197)
    shares = (None, 0.0, 0.13, 0.9)
    usual, low, near, high = (memory_of(RUN, anatomy_of(RUN), setting, "cpu", kept) for kept in shares)
    assert low.heap == 0 < usual.heap < high.heap == int(0.9 * high.passing)
    assert near.heap == usual.heap, "one process of one setting cannot tell more than settings differ by"
    assert low.model == usual.model == high.model
    assert low.reserve == usual.reserve > 0


def test_without_jemalloc_more_memory_is_planned() -> None:
    setting = Setting(8, 197)
    ours, glibc = (memory_of(RUN, anatomy_of(RUN), setting, "cpu", heap=heap) for heap in get_args(Heap))
    assert ours.heap + ours.reserve < glibc.heap + glibc.reserve


def test_a_run_that_cannot_be_trained_here_says_why(own_cache: Path) -> None:
    missing = RUN.model_copy(update={"backbone": BackboneConfig(name="vit-s16", weights="/nowhere.pth")})
    with pytest.raises(MachineError, match="nowhere"):
        calibrate(missing)


@pytest.mark.slow
def test_a_step_of_the_digits_is_measured_and_printed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "replora.train.calibrate", "1", "1"],
        input=RunConfig().model_dump_json(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert '"peak": {"device": "cpu", "heap": ' in done.stdout


def test_this_machine_is_its_cores_or_its_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho 'A, 81920 MiB, 535.1'\necho 'A, 40960 MiB, 535.1'\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert (hardware_here().gpus, round(hardware_here().place_gib)) == (2, 39)
    assert hardware_here(visible=0).device == "cpu"
