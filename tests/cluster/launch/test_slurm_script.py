"""The rendered Slurm script runs: one node, a real Ray, and an srun that only runs its command."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.launch.render import slurm_script
from tests.cluster.launch.jobs import fake_program, job
from tests.waiting import PATIENCE_S

ROOT = Path(__file__).parents[3]
SWEEP = """
name: tiny
run:
  train: {steps: 4, batch: 4, eval_every: 4, checkpoint_every: 4}
space:
  optim.lr: {values: [0.001, 0.002]}
"""
#: Leaves the options of srun out and runs the rest.
SRUN = 'while [[ "$1" == --* ]]; do shift; done; exec "$@"'


def environment(folder: Path, **changes: str) -> dict[str, str]:
    """What a script finds in its one-node allocation."""
    fake_program(folder / "programs", "srun", SRUN)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    slurm = {"SLURM_JOB_ID": f"test-{os.getpid()}", "SLURM_JOB_NUM_NODES": "1"}
    ray = {"REPLORA_RAY_PORT": str(port), "REPLORA_HEAD_IP": "127.0.0.1"}
    path = f"{folder / 'programs'}:{own['PATH']}"
    return {**own, **slurm, **ray, "PATH": path, "PYTHONPATH": str(ROOT), **changes}


def run_script(folder: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    """Runs a script for a tiny sweep to its end, and ends whatever it would leave behind."""
    (folder / "tiny.yaml").write_text(SWEEP)
    text = slurm_script(
        job(
            name="tiny",
            config=folder / "tiny.yaml",
            folder=folder / "runs",
            nodes=1,
            gpus=0,
            cpus=1,
            environment=Path(sys.prefix),
            partition=None,
            account=None,
        )
    )
    (folder / "runs").mkdir()
    (folder / "script").write_text(text)
    process = subprocess.Popen(
        ["bash", folder / "script"],
        env=environment(folder, **changes),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.mark.slow
def test_the_script_starts_ray_runs_the_sweep_and_leaves_nothing_behind(tmp_path: Path) -> None:
    done = run_script(tmp_path)
    assert done.returncode == 0, done.stderr[-3_000:]
    lines = (tmp_path / "runs" / "ledger.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines].count("finished") == 2
    left = [path.name for path in (tmp_path / "runs").iterdir() if path.name.startswith((".ray", ".nodes"))]
    assert left == []
    assert not Path(f"/tmp/replora-test-{os.getpid()}").exists()


def test_a_folder_that_not_every_node_sees_ends_the_job(tmp_path: Path) -> None:
    done = run_script(tmp_path, SLURM_JOB_NUM_NODES="2")
    assert done.returncode == 3
    assert "1 of 2 nodes see" in done.stderr
    assert not (tmp_path / "runs" / "ledger.jsonl").exists()
