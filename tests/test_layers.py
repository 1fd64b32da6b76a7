"""The rules of docs/architecture.md hold, and breaking one is noticed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"deepspeed", "matplotlib", "mlflow", "optuna", "peft", "ray", "timm", "torch", "transformers"}
LIGHT = (
    "cluster.commands",
    "replora.cli",
    "replora.commands",
    "replora.config",
    "replora.load",
    "sweeps.commands",
    "sweeps.config",
)


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter with the contracts of `root/pyproject.toml` over the packages in `root`."""
    program = Path(sys.executable).with_name("lint-imports")
    return subprocess.run(
        [program, "--no-cache", "--config", root / "pyproject.toml"],
        cwd=root,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def toy_tree(tmp_path: Path) -> Path:
    """The four packages with every door, one import each, under the project's own contracts."""
    doors = {
        "sweeps/ray_backend/__init__.py": "ray",
        "sweeps/ray_backend/session.py": "ray.tune",
        "sweeps/search/anything.py": "optuna",
        "sweeps/mlflow_recorder.py": "mlflow",
        "replora/methods/exchange/tuner.py": "peft",
        "replora/train/engine.py": "deepspeed",
    }
    for name in (
        "ablations",
        "sweeps/search",
        "sweeps/ray_backend",
        "cluster",
        "replora/methods/exchange",
        "replora/train",
    ):
        (tmp_path / name).mkdir(parents=True)
    for folder in filter(Path.is_dir, tmp_path.rglob("*")):
        (folder / "__init__.py").touch()
    for file, library in doors.items():
        (tmp_path / file).write_text(f"import {library}\n")
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    return tmp_path


def test_layers_and_doors_hold() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_library_may_be_imported_at_its_door(toy_tree: Path) -> None:
    done = lint_imports(toy_tree)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("replora/up.py", "import cluster", "never back"),
        ("cluster/up.py", "import sweeps.search", "never back"),
        ("sweeps/up.py", "def f():\n    import ablations", "never back"),
        ("sweeps/second.py", "from ray import tune", "ray only in sweeps.ray_backend"),
        ("ablations/second.py", "import optuna", "optuna only in sweeps.search"),
        ("sweeps/second.py", "import mlflow.entities", "mlflow only in sweeps.mlflow_recorder"),
        ("replora/second.py", "def f():\n    from peft import LoraConfig", "peft only in"),
        ("cluster/second.py", "import deepspeed", "deepspeed only in replora.train.engine"),
    ],
)
def test_an_import_against_the_rules_is_caught(toy_tree: Path, file: str, line: str, contract: str) -> None:
    (toy_tree / file).write_text(line + "\n")
    done = lint_imports(toy_tree)
    broken = [row for row in done.stdout.splitlines() if "BROKEN" in row]
    assert done.returncode == 1
    assert any(contract in row for row in broken), done.stdout


@pytest.mark.parametrize("module", LIGHT)
def test_a_light_module_loads_no_heavy_library(module: str) -> None:
    code = f"import sys, json, {module}; print(json.dumps([m for m in sys.modules if '.' not in m]))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert HEAVY.isdisjoint(json.loads(done.stdout))
