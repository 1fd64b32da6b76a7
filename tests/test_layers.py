"""Breaking a rule of docs/architecture.md is noticed; `make check` holds the tree itself to them."""

from __future__ import annotations

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
        "sweeps/mlflow_session.py": "mlflow",
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


def test_each_library_may_be_imported_at_its_door(toy_tree: Path) -> None:
    done = lint_imports(toy_tree)
    assert done.returncode == 0, done.stdout + done.stderr


#: A file, a line in it that is against the rules, and what import-linter says of it.
BROKEN = (
    ("replora/up.py", "import cluster", "replora.up -> cluster"),
    ("cluster/up.py", "import sweeps.search", "cluster.up -> sweeps.search"),
    ("sweeps/up.py", "def f():\n    import ablations", "sweeps.up -> ablations"),
    ("sweeps/second.py", "from ray import tune\nimport mlflow.entities", "sweeps.second -> ray"),
    ("sweeps/second.py", "", "sweeps.second -> mlflow"),
    ("ablations/second.py", "import optuna", "ablations.second -> optuna"),
    ("replora/second.py", "def f():\n    from peft import LoraConfig", "replora.second -> peft"),
    ("cluster/second.py", "import deepspeed", "cluster.second -> deepspeed"),
)


def test_every_import_against_the_rules_is_caught(toy_tree: Path) -> None:
    for file, line, _ in BROKEN:
        with (toy_tree / file).open("a") as text:
            text.write(line + "\n")
    done = lint_imports(toy_tree)
    assert done.returncode == 1
    assert [said for _, _, said in BROKEN if f"{said} (l." not in done.stdout] == [], done.stdout


def test_light_modules_load_no_heavy_library() -> None:
    code = (
        "import importlib, sys\n"
        f"for module in {LIGHT}:\n"
        "    importlib.import_module(module)\n"
        f"    assert {HEAVY}.isdisjoint(sys.modules), module\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
