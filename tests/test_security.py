"""The claims of docs/security.md that no other test holds."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from cluster.doctor.network import check_mlflow
from cluster.hardware import Hardware
from cluster.launch.cloud import Cloud
from cluster.launch.job import Job, Place
from cluster.launch.submit import prepare
from replora.errors import ConfigError
from sweeps.config import SweepConfig
from tests.cluster.launch.jobs import job as fixed_job

ROOT = Path(__file__).parent.parent
PACKAGES = ("replora", "cluster", "sweeps", "ablations")
ESCAPES = ("../out", "a/b", "/etc/x", "-rf", "a b", "$(id)", "a;b", "a\nb", "")


def job(folder: Path, **changes: str) -> Job:
    """A job of a sweep that is there."""
    sweep = folder / "grid.yaml"
    sweep.write_text("name: grid\nspace: {optim.lr: {values: [0.001]}}\n")
    cloud = Cloud(instance="p4d.24xlarge", storage="fs-1.example:/")
    places = {"folder": folder / "runs", "mount": folder, "environment": folder / "env"}
    return fixed_job(config=sweep, cloud=cloud, **places, **changes)


def calls() -> Iterator[tuple[Path, ast.Call, str]]:
    """Every call in the packages, with the dotted name that is called."""
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    yield path, node, ast.unparse(node.func)


def test_nothing_is_unpickled_and_no_model_brings_code() -> None:
    found = list(calls())
    assert len(found) > 1_000
    names = {name for _, _, name in found}
    assert not names & {"pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load", "eval", "exec"}
    for path, node, name in found:
        words = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if name.startswith("Auto"):  # by itself, transformers would ask the person at the terminal
            assert words["trust_remote_code"] == "False", path
        assert words.get("trust_remote_code", "False") == "False", path
        if name == "torch.load":
            assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords), (
                path
            )


@pytest.mark.parametrize("name", ESCAPES)
def test_names_that_become_paths_hold_no_path(name: str) -> None:
    with pytest.raises(ValidationError):
        SweepConfig.model_validate({"name": name, "space": {"optim.lr": {"values": [1e-3]}}})
    with pytest.raises(ValidationError):
        Hardware(name=name, summary="", gpus=0)


@pytest.mark.parametrize("place", ["slurm", "ray", "kuberay"])
@pytest.mark.parametrize("name", ESCAPES)
def test_names_that_become_words_of_a_launch_are_refused(place: Place, name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="name must be"):
        prepare(job(tmp_path, name=name), place)


@pytest.mark.parametrize("place", ["local", "slurm", "ray", "kuberay", "cloud"])
def test_no_launcher_writes_a_secret(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "s3cret-token")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:s3cret-word@tracking:5000")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "s3cret-word")
    submission = prepare(job(tmp_path), place)
    assert "s3cret" not in submission.text + " ".join(submission.command)


def test_launchers_that_start_ray_ask_for_a_token(tmp_path: Path) -> None:
    assert "RAY_AUTH_MODE=token" in prepare(job(tmp_path), "slurm").text
    assert "RAY_AUTH_MODE=token" in prepare(job(tmp_path), "cloud").text
    assert "authOptions: {mode: token}" in prepare(job(tmp_path), "kuberay").text


def test_a_tracking_servers_password_is_not_shown() -> None:
    finding = check_mlflow("http://user:s3cret@127.0.0.1:1/")
    assert "s3cret" not in finding.text + finding.remedy
