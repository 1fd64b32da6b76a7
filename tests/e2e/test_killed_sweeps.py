"""A real sweep on a real Ray, its driver killed with SIGKILL again and again, ends as if undisturbed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import psutil
import pytest

from benchmarks._torture import table
from sweeps.ledger import SweepView, read_ledger, read_lines
from tests.sweeps.drivers import killed_at, replora
from tests.waiting import running, wait_for

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


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SweepView]:
    """The sweep's file, and its view after a run that nothing disturbed, in other packs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    file = folder / "killed.yaml"
    file.write_text(SWEEP)
    command = replora("sweep", str(file), "resources.slots=4", "--dir", str(folder / "sweep"))
    subprocess.run(command, check=True, capture_output=True)
    return file, read_ledger(folder / "sweep")


def test_a_sweep_whose_driver_is_killed_three_times_ends_like_an_undisturbed_one(
    undisturbed: tuple[Path, SweepView], tmp_path: Path, orphans: list[psutil.Process]
) -> None:
    file, expected = undisturbed
    folder = tmp_path / "sweep"
    finished: set[str] = set()
    words = ["sweep", str(file), "--dir", str(folder)]
    for event, count in (("checkpointed", 2), ("finished", 1), ("checkpointed", 5)):
        orphans += killed_at(event, count, words)
        cut = read_ledger(folder)
        finished |= {name for name, trial in cut.trials.items() if trial.state == "finished"}
        words = ["resume", str(folder)]
    before = read_ledger(folder)
    subprocess.run(replora(*words), check=True, capture_output=True)
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
    orphans += killed_at("started", 1, ["sweep", str(file), "--dir", str(folder)])
    assert orphans
    subprocess.run(replora("resume", str(folder)), check=True, capture_output=True)
    wait_for(lambda: not running(orphans), "the end of what the killed driver left")
