"""A real sweep on a real Ray, its driver killed with SIGKILL again and again, ends as if undisturbed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from sweeps.ledger import LEDGER_NAME, SweepView, read_ledger, read_lines

SWEEP = """
name: killed
run:
  backbone: {name: vit-digits, weights: random}
  train: {steps: 60, batch: 4, eval_every: 20, checkpoint_every: 10}
space:
  optim.lr: {values: [0.001, 0.002, 0.003, 0.004]}
  method.rank: {values: [2, 20]}
resources: {hosts: 2, slots: 2, threads: 1}
"""
pytestmark = pytest.mark.slow


def replora(*words: str) -> list[str]:
    return [sys.executable, "-m", "replora", *words]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SweepView]:
    """The sweep's file, and its view after a run that nothing disturbed, in other packs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    file = folder / "killed.yaml"
    file.write_text(SWEEP)
    command = replora("sweep", str(file), "resources.slots=4", "--dir", str(folder / "sweep"))
    subprocess.run(command, check=True, capture_output=True)
    return file, read_ledger(folder / "sweep")


def table(view: SweepView) -> bytes:
    """What a sweep found, without clocks and places."""
    rows = {
        name: [
            trial.state,
            trial.objective,
            trial.step,
            [[step, {k: v for k, v in metrics.items() if k != "seconds"}] for step, metrics in trial.reports],
        ]
        for name, trial in sorted(view.trials.items())
    }
    return json.dumps(rows, sort_keys=True).encode()


def count(folder: Path, event: str) -> int:
    path = folder / LEDGER_NAME
    return path.read_bytes().count(f'"event":"{event}"'.encode()) if path.exists() else 0


def killed_when(command: list[str], folder: Path, event: str, more: int) -> list[psutil.Process]:
    """Runs a command and kills it once the ledger has so many more lines of an event; its children."""
    before = count(folder, event)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while count(folder, event) < before + more:
            assert process.poll() is None, "the sweep ended before it could be killed"
            assert time.monotonic() < deadline, f"no {event} within two minutes"
            time.sleep(0.005)
        children: list[psutil.Process] = psutil.Process(process.pid).children(recursive=True)
        return children
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def orphans() -> Iterator[list[psutil.Process]]:
    """Processes that a killed driver left; whatever still runs at the end of a test is ended."""
    left: list[psutil.Process] = []
    yield left
    for process in left:
        if process.is_running():
            process.kill()


def test_a_sweep_whose_driver_is_killed_three_times_ends_like_an_undisturbed_one(
    undisturbed: tuple[Path, SweepView], tmp_path: Path, orphans: list[psutil.Process]
) -> None:
    file, expected = undisturbed
    folder = tmp_path / "sweep"
    finished: set[str] = set()
    command = replora("sweep", str(file), "--dir", str(folder))
    for event, more in (("checkpointed", 2), ("finished", 1), ("checkpointed", 5)):
        orphans += killed_when(command, folder, event, more)
        cut = read_ledger(folder)
        finished |= {name for name, trial in cut.trials.items() if trial.state == "finished"}
        command = replora("resume", str(folder))
    before = read_ledger(folder)
    subprocess.run(command, check=True, capture_output=True)
    view = read_ledger(folder)
    assert table(view) == table(expected)
    again = {
        line["trial"] for line in read_lines(folder) if line["event"] == "started" and line["attempt"] > 1
    }
    assert finished
    assert not finished & {n for n, t in before.trials.items() if t.state != "finished"}
    assert again, "no kill hit a running trial"
    for name in finished:
        lines = [line["event"] for line in read_lines(folder) if line["trial"] == name]
        assert lines.count("finished") == 1
        assert lines[-1] == "finished"


def test_the_next_sweep_removes_what_a_killed_driver_left(
    undisturbed: tuple[Path, SweepView], tmp_path: Path, orphans: list[psutil.Process]
) -> None:
    file, _ = undisturbed
    folder = tmp_path / "sweep"
    orphans += killed_when(replora("sweep", str(file), "--dir", str(folder)), folder, "started", 1)
    assert orphans
    subprocess.run(replora("resume", str(folder)), check=True, capture_output=True)
    _, alive = psutil.wait_procs(orphans, timeout=30)
    assert [process.name() for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
