"""`replora launch`: what is handed to which program, and what happens where it is missing or refuses."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.launch.drive import doctor_arguments, sweep_arguments
from cluster.launch.drive import main as run_driver
from cluster.launch.verb import LAUNCH
from replora.errors import ConfigError, MachineError, RunFailedError
from replora.verbs import Answer
from tests.cluster.launch.jobs import fake_program

SWEEP = "name: tiny\nspace:\n  optim.lr: {values: [0.001]}\n"
KUBERAY = ("--image", "registry.example/replora:0.1", "--claim", "data")


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """A sweep's file."""
    path = tmp_path / "tiny.yaml"
    path.write_text(SWEEP)
    return path


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on PATH beside the system's own tools, for fakes of sbatch, kubectl and ray."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/bin")
    return folder


def launch(*arguments: str | Path, dry_run: bool = False) -> Answer:
    """The verb's answer."""
    parser = argparse.ArgumentParser()
    LAUNCH.configure(parser)
    options = parser.parse_args([str(argument) for argument in arguments])
    options.dry_run = dry_run
    return LAUNCH.run(options)


def document(answer: Answer) -> dict[str, Any]:
    """Its document."""
    assert isinstance(answer.document, dict)
    return answer.document


def test_a_dry_run_shows_the_text_and_writes_nothing(sweep: Path, tmp_path: Path, programs: Path) -> None:
    answer = launch(sweep, "--on", "slurm", "--dir", tmp_path / "runs", dry_run=True)
    assert answer.text.startswith("#!/bin/bash")
    assert not (tmp_path / "runs").exists()
    json.dumps(answer.document)


def test_slurm_gets_the_script_and_gives_the_jobs_number(sweep: Path, tmp_path: Path, programs: Path) -> None:
    fake_program(programs, "sbatch", 'printf "%s\\n" "$@" >"$0.arguments"; echo 4711')
    answer = launch(sweep, "--on", "slurm", "--dir", tmp_path / "runs")
    script = tmp_path / "runs" / "launch.slurm"
    assert answer.text == "4711"
    assert (programs / "sbatch.arguments").read_text().split() == ["--parsable", str(script)]
    assert script.read_text() == document(answer)["text"]


def test_kubernetes_gets_the_manifest_on_stdin(sweep: Path, programs: Path) -> None:
    fake_program(programs, "kubectl", 'cat >"$0.stdin"; echo created')
    answer = launch("/shared/tiny.yaml", "--on", "kuberay", "--dir", "/shared/runs/tiny", *KUBERAY)
    assert answer.text == "created"
    assert (programs / "kubectl.stdin").read_text() == document(answer)["text"]


def test_ray_gets_the_command_as_words(sweep: Path, programs: Path) -> None:
    fake_program(programs, "ray", 'printf "%s\\n" "$@" >"$0.arguments"')
    launch(sweep, "--on", "ray", "--dir", "/shared/runs", "--env", "/shared/env", "--gpus", "4")
    words = (programs / "ray.arguments").read_text().split("\n")[:-1]
    assert words[:3] == ["job", "submit", "--address"]
    after = words[words.index("--") + 1 :]
    assert after[:4] == ["/shared/env/bin/python", "-m", "cluster.launch.drive", str(sweep)]
    assert after[-6:] == ["--nodes", "1", "--gpus", "4", "--cpus", "4"]


@pytest.mark.parametrize(("place", "program"), [("slurm", "sbatch"), ("kuberay", "kubectl"), ("ray", "ray")])
def test_a_missing_program_is_named_with_a_remedy(
    place: str, program: str, tmp_path: Path, sweep: Path, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(programs))
    more = (*KUBERAY, "--mount", tmp_path) if place == "kuberay" else ()
    with pytest.raises(MachineError, match=f"{program} is not installed here") as caught:
        launch(sweep, "--on", place, "--dir", tmp_path / "runs", *more)
    assert len(str(caught.value).splitlines()) == 2
    assert not (tmp_path / "runs").exists()


def test_what_a_program_says_when_it_refuses_is_passed_on(
    sweep: Path, tmp_path: Path, programs: Path
) -> None:
    fake_program(programs, "sbatch", "echo 'invalid partition' >&2; exit 1")
    with pytest.raises(RunFailedError, match=r"status 1\.\n  invalid partition"):
        launch(sweep, "--on", "slurm", "--dir", tmp_path / "runs")


def test_a_local_launch_is_the_same_sweep_on_this_machine(sweep: Path, tmp_path: Path) -> None:
    command = document(launch(sweep, "--on", "local", "--dir", tmp_path / "a b", dry_run=True))["command"]
    assert command == [
        sys.executable, "-m", "replora", "sweep", str(sweep), "--dir", str(tmp_path / "a b")
    ]  # fmt: skip
    dry = subprocess.run([*command, "--dry-run"], capture_output=True, text=True, check=False)
    assert dry.returncode == 0, dry.stderr
    assert "Sweep tiny: 1 trials" in dry.stdout


def test_a_sweep_of_the_package_is_launched_here_by_its_name() -> None:
    command = document(launch("smoke", "--on", "local", dry_run=True))["command"]
    assert command[3:] == ["sweep", "smoke", "--dir", "runs/smoke"]


def drive(sweep: Path, gpus: int = 4) -> argparse.Namespace:
    """What the driver was told."""
    machines = {"nodes": 1, "gpus": gpus, "cpus": 8}
    return argparse.Namespace(sweep=sweep, dir=Path("/shared/runs"), address="auto", wait=9, **machines)


def test_the_driver_adds_what_only_the_cluster_knows(sweep: Path) -> None:
    words = sweep_arguments(drive(sweep), {"MLFLOW_TRACKING_URI": "http://mlflow:5000"})
    assert words[4:] == [
        "resources.address=auto", "resources.hosts=4", "resources.threads=2", "tracking.uri=http://mlflow:5000"
    ]  # fmt: skip


def test_the_driver_waits_for_its_nodes_and_has_them_examined(sweep: Path) -> None:
    words = [
        "doctor",
        "--dir",
        "/shared/runs",
        "--address",
        "auto",
        "--nodes",
        "--expect",
        "1",
        "--wait",
        "9",
    ]
    assert doctor_arguments(drive(sweep)) == words


def test_the_driver_leaves_alone_what_the_file_decides(sweep: Path) -> None:
    sweep.write_text(f"{SWEEP}resources: {{hosts: 2, threads: 1}}\ntracking: {{uri: 'http://own:5000'}}\n")
    words = sweep_arguments(drive(sweep), {"MLFLOW_TRACKING_URI": "http://mlflow:5000"})
    assert words[4:] == ["resources.address=auto", "resources.hosts=2", "resources.threads=1"]


def test_the_driver_counts_gangs_and_refuses_machines_that_hold_none(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep.write_text(f"{SWEEP}run: {{engine: {{ranks: 2}}}}\n")
    assert "resources.hosts=2" in sweep_arguments(drive(sweep), {})
    machines = ["--nodes", "1", "--gpus", "1", "--cpus", "8"]
    status = run_driver([str(sweep), "--dir", str(tmp_path), "--address", "auto", *machines])
    assert status == 2
    assert "give --gpus 2" in capsys.readouterr().err


def test_a_cloud_needs_the_token_that_it_copies_and_then_starts_the_sweep(
    sweep: Path, programs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    fake_program(programs, "ray", 'printf "%s\\n" "$*" >>"$0.arguments"')
    words: list[str | Path] = ["--on", "cloud", "--mount", tmp_path, "--env", tmp_path / "env"]
    words += ["--dir", tmp_path / "runs", "--instance", "g6.xlarge", "--storage", "fs-1.example:/"]
    with pytest.raises(MachineError, match="get-auth-token --generate"):
        launch(sweep, *words)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("0" * 32)
    monkeypatch.chdir(tmp_path)
    launch(sweep, *words)
    up, start = (programs / "ray.arguments").read_text().splitlines()
    file = Path("replora-tiny.cloud.yaml")
    assert up == f"up --yes {file}"
    assert start.startswith(f"exec --tmux {file} RAY_AUTH_MODE=token {tmp_path}/env/bin/python -m cluster")
    file.write_text("cluster_name: edited\n")
    with pytest.raises(ConfigError, match="differs from what would be written"):
        launch(sweep, *words)
    assert file.read_text() == "cluster_name: edited\n"
