"""One sweep over a tiny Llama on plain hosts, on ZeRO-2 gangs and on ZeRO-3 gangs: the same answer."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest

from sweeps.ledger import SweepView, read_ledger, read_lines
from tests.replora.tiny_llama import save_commonsense, save_tiny_llama
from tests.sweeps.drivers import killed_at, replora
from tests.waiting import PATIENCE_S, running, wait_for

SWEEP = """
name: engines
run:
  backbone: {{name: hf/{llama}}}
  task: {{name: commonsense, root: {data}, cutoff: 32, val_items: 8}}
  method: {{name: replora, rank: 4, dropout: 0.1}}
  train: {{steps: 6, batch: 4, micro_batch: 2, eval_every: 3, checkpoint_every: 2}}
space:
  optim.lr: {{values: [0.0001, 0.001, 0.01]}}
resources: {{hosts: 1, slots: 3, threads: 1}}
"""
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engines")
    llama, data = save_tiny_llama(folder / "llama"), save_commonsense(folder / "data")
    (folder / "engines.yaml").write_text(SWEEP.format(llama=llama, data=data))
    return folder / "engines.yaml"


def words(file: Path, folder: Path, zero: int) -> list[str]:
    engine = [f"run.engine.zero={zero}", f"run.engine.ranks={2 if zero else 1}"]
    return ["sweep", str(file), "--dir", str(folder), "--json", *engine]


def answer(*words: str) -> dict[str, Any]:
    done = subprocess.run(replora(*words), capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def plain(file: Path) -> dict[str, Any]:
    return answer(*words(file, file.parent / "plain", 0), "backend=in-process")


def losses(view: SweepView) -> dict[str, float]:
    return {name: trial.objective for name, trial in view.trials.items() if trial.objective is not None}


def assert_same_answer(folder: Path, plain: dict[str, Any]) -> None:
    expected = losses(read_ledger(Path(plain["sweep_dir"])))
    found = losses(read_ledger(folder))
    assert len(found) == 3
    assert found == {name: pytest.approx(loss, rel=1e-4) for name, loss in expected.items()}
    assert min(found, key=found.__getitem__) == min(expected, key=expected.__getitem__)


def test_gangs_of_zero_2_give_the_answer_of_plain_hosts(
    file: Path, plain: dict[str, Any], tmp_path: Path
) -> None:
    found = answer(*words(file, tmp_path / "sweep", 2))
    assert_same_answer(tmp_path / "sweep", plain)
    assert found["best"]["run"]["optim"] == plain["best"]["run"]["optim"]


def test_gangs_of_zero_3_whose_driver_is_killed_give_the_answer_of_plain_hosts(
    file: Path, plain: dict[str, Any], tmp_path: Path, orphans: list[psutil.Process]
) -> None:
    folder = tmp_path / "sweep"
    orphans += killed_at("checkpointed", 1, words(file, folder, 3))
    wait_for(lambda: not running(orphans), "the end of ranks whose driver was killed")
    answer("resume", str(folder), "--json")
    assert_same_answer(folder, plain)
    starts = [line for line in read_lines(folder) if line["event"] == "started" and line["attempt"] > 1]
    assert starts, "the kill hit no running trial"
