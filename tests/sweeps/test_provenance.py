from __future__ import annotations

import platform
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

import replora
from sweeps.provenance import git_revision, version_changes, versions


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package in a repository of its own, taken for the real one."""
    package = tmp_path / "replora"
    source = Path(replora.__file__).parent
    shutil.copytree(source, package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(replora, "__file__", str(package / "__init__.py"))
    return package


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_versions_are_those_of_this_environment() -> None:
    found = versions()
    assert found["python"] == platform.python_version()
    assert found["torch"] == version("torch")


@pytest.mark.parametrize(
    ("file", "changes"), [("train/pack.py", True), ("models/digits.py", True), ("cli.py", False)]
)
def test_the_code_hash_sees_changes_of_the_training_only(copy: Path, file: str, changes: bool) -> None:
    before = versions()["code"]
    path = copy / file
    path.write_text(path.read_text() + "\n")
    assert (versions()["code"] != before) is changes


def test_a_change_is_told_with_both_sides() -> None:
    now = {"torch": "2", "timm": "1", "code": "x"}
    assert version_changes({"torch": "1", "timm": "1"}, now) == ["torch: 1 -> 2", "code: (none) -> x"]


def test_versions_of_ray_and_mlflow_are_recorded_only() -> None:
    assert version_changes({"ray": "1", "mlflow": "1"}, {"ray": "2", "mlflow": "2"}) == []


def test_the_revision_tells_changed_sources(copy: Path) -> None:
    git(copy.parent, "init", "-q")
    git(copy.parent, "add", ".")
    git(copy.parent, "commit", "-q", "-m", "x")
    clean = git_revision()
    (copy / "cli.py").write_text("changed")
    assert clean == git(copy.parent, "rev-parse", "HEAD")
    assert git_revision() == f"{clean}-dirty"


def test_somebody_elses_repository_is_not_taken_for_ours(copy: Path) -> None:
    git(copy.parent, "init", "-q")
    (copy.parent / "other.txt").write_text("x")
    git(copy.parent, "add", "other.txt")
    git(copy.parent, "commit", "-q", "-m", "x")
    assert git_revision() == ""
