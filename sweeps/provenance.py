"""What a result depends on besides its configuration: versions, code, revision. Imports no library."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import replora

__all__ = ["RECORDED_ONLY", "code_hash", "git_revision", "version_changes", "versions"]

PACKAGES = ("replora", "torch", "torchvision", "timm", "transformers", "numpy", "optuna", "ray", "mlflow")
#: Versions that cannot move a result, so that a change of theirs needs nobody's consent.
RECORDED_ONLY = ("ray", "mlflow")


def versions() -> dict[str, str]:
    """Versions by name: Python, the libraries, and `code`, a hash of this project's training code."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found | {"code": code_hash()}


def version_changes(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """Readable differences that could move a result, for example `torch: 2.14.0 -> 2.14.1`."""
    names = [name for name in [*before, *(now.keys() - before.keys())] if name not in RECORDED_ONLY]
    return [
        f"{name}: {before.get(name, '(none)')} -> {now.get(name, '(none)')}"
        for name in names
        if before.get(name) != now.get(name)
    ]


def code_hash() -> str:
    """First 12 hex digits over the Python files that a training runs."""
    root = Path(replora.__file__).parent
    digest = hashlib.sha256()
    for folder in ("methods", "models", "tasks", "train"):
        for path in sorted((root / folder).rglob("*.py")):
            digest.update(f"{path.relative_to(root)}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def git_revision() -> str:
    """Commit of this project's sources, with `-dirty` where they were changed; empty outside a repository."""
    root = Path(replora.__file__).parent
    revision = _git(root, "rev-parse", "HEAD")
    if not revision or not _git(root, "ls-files", "--", "__init__.py"):
        return ""  # installed inside somebody else's repository
    return revision + ("-dirty" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
