"""A real sweep on a real small disk that becomes full: a clean end, an intact ledger, and the same table."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks._torture import table
from sweeps.ledger import read_ledger
from tests.needs import missing
from tests.sweeps.drivers import halted_at, replora
from tests.waiting import PATIENCE_S

SWEEP = """
name: full
run:
  backbone: {name: vit-digits, weights: random}
  method: {name: lora, rank: 2}
  train: {steps: 80, batch: 4, eval_every: 20, checkpoint_every: 2}
space: {optim.lr: {values: [0.001, 0.002, 0.003, 0.004]}}
backend: in-process
resources: {slots: 2, threads: 1}
"""
MIB = 2**20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 MiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        missing(f"mounting a file system needs root: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(replora(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def fill(disk: Path) -> Path:
    """A file that takes what is left."""
    path = disk / "filler"
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(b"0" * 4096):
                pass
        except OSError:
            return path
    raise AssertionError("the disk did not become full")


@pytest.mark.slow
def test_a_sweep_on_a_full_disk_ends_cleanly_and_goes_on_when_there_is_space(
    disk: Path, tmp_path: Path
) -> None:
    file = tmp_path / "full.yaml"
    file.write_text(SWEEP)
    calm = start("sweep", str(file), "--dir", str(tmp_path / "calm"))
    _, complaint = calm.communicate(timeout=PATIENCE_S)
    assert calm.returncode == 0, complaint

    folder = disk / "sweep"
    process = halted_at("reported", 1, ["sweep", str(file), "--dir", str(folder)])
    filler = fill(disk)
    process.send_signal(signal.SIGCONT)
    _, complaint = process.communicate(timeout=PATIENCE_S)
    assert process.returncode in (2, 3), complaint
    assert "Traceback" not in complaint
    assert "No space left on device" in complaint
    assert str(folder) in complaint
    states = {trial.state for trial in read_ledger(folder).trials.values()}
    assert "failed" not in states

    filler.unlink()
    again = start("resume", str(folder))
    _, complaint = again.communicate(timeout=PATIENCE_S)
    assert again.returncode == 0, complaint
    assert table(read_ledger(folder)) == table(read_ledger(tmp_path / "calm"))
