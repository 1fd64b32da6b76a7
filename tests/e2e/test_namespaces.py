"""A sweep over hosts with addresses of their own: one dies, one is cut off, one joins; nothing is lost."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks._torture import table
from sweeps.ledger import read_ledger, read_lines
from tests.e2e.namespaces import Network, several_hosts
from tests.sweeps.drivers import replora, until
from tests.waiting import PATIENCE_S

pytestmark = pytest.mark.slow

SWEEP = """
name: hosts
run:
  backbone: {name: vit-digits, weights: random}
  train: {steps: 300, batch: 4, eval_every: 100, checkpoint_every: 20}
space:
  optim.lr: {values: [0.001, 0.002, 0.003, 0.004, 0.005, 0.006]}
resources: {hosts: 2, slots: 2, threads: 1}
max_failures: 5
"""


def disturbed(network: Network, file: Path, folder: Path) -> None:
    """Runs the sweep on three hosts, of which the head trains nothing, and disturbs it."""
    head, first, second = network.add(0), network.add(1), network.add(1)
    ready = ["doctor", "--address", network.head, "--nodes", "--deep", "--expect", "2", "--json"]
    doctor = network.start(head, *replora(*ready, "--dir", str(folder.parent / "shared")))
    assert doctor.wait(PATIENCE_S) == 0, (network.folder / f"{head.name}.log").read_text()[-2000:]
    links = next(found for found in _said(network, head.name)["together"] if found["name"] == "links")
    assert links["text"].startswith("3 processes on 3 nodes sum 16 MiB over gloo"), links
    words = ["sweep", str(file), "--dir", str(folder), f"resources.address={network.head}"]
    driver = network.start(head, *replora(*words))
    until(folder, "checkpointed", 4, driver)
    network.kill(first)
    network.add(2)  # room for the other host, too: its own machine is cut off next
    until(folder, "finished", 2, driver)
    network.cut(second)
    status = driver.wait(PATIENCE_S)
    assert status == 0, (network.folder / f"{head.name}.log").read_text()[-3000:]


def _said(network: Network, name: str) -> dict[str, Any]:
    """The last answer of the doctor."""
    for line in reversed((network.folder / f"{name}.log").read_text().splitlines()):
        if line.startswith("{"):
            said: dict[str, Any] = json.loads(line)
            return said
    return {}


def test_hosts_that_die_are_cut_off_or_join_change_no_result(tmp_path: Path) -> None:
    file = tmp_path / "hosts.yaml"
    file.write_text(SWEEP)
    with several_hosts(tmp_path) as network:
        disturbed(network, file, tmp_path / "sweep")
    alone = replora("sweep", str(file), "--dir", str(tmp_path / "undisturbed"))
    subprocess.run([*alone, "backend=in-process", "resources.hosts=1"], check=True, capture_output=True)
    view = read_ledger(tmp_path / "sweep")
    assert table(view) == table(read_ledger(tmp_path / "undisturbed"))
    lines = list(read_lines(tmp_path / "sweep"))
    finished = [line["trial"] for line in lines if line["event"] == "finished"]
    assert sorted(finished) == sorted(view.trials)
    assert any(line["event"] == "started" and line["attempt"] > 1 for line in lines), "nothing was lost"
