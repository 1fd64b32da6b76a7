"""Each benchmark runs by itself and ends with one line of JSON in the documented form."""

from __future__ import annotations

import ast
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks._common import Row, finish, interleaved
from benchmarks._gpu import widest
from benchmarks._saved import saved_bytes
from tests.waiting import PATIENCE_S

FOLDER = Path(__file__).parent.parent / "benchmarks"
OWN = (
    "calibration",
    "gpu_packs",
    "gpu_throughput",
    "makespan",
    "methods",
    "pack_memory",
    "planner_choice",
    "step_time",
    "time_to_best",
    "torture",
    "trial_switch",
)
METHODS = {
    f"llama-30m-{method}-{what}"
    for method in ("lora", "replora", "dora", "doran", "hora", "adapter", "prefix")
    for what in ("time", "activations")
} | {
    f"llama-30m-{what}"
    for what in ("replora-peak", "inference-replora", "inference-hora", "inference-merged")
}
FIELDS = {"name", "ours", "peer", "unit", "ratio", "aim", "device"}


def quick_rows(name: str) -> list[dict[str, Any]]:
    """The rows of the last line that `python benchmarks/<name>.py --quick` prints."""
    command = [sys.executable, str(FOLDER / f"{name}.py"), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return rows


@pytest.mark.slow
@pytest.mark.parametrize(
    ("benchmark", "names"),
    [
        (
            "gpu_packs",
            {f"K{slots}-32-{what}" for slots in (1, 2) for what in ("sequential", "bound", "memory")},
        ),
        ("gpu_throughput", {f"tiny-{what}" for what in ("vs-lora", "vs-dora", "share-of-peak", "memory")}),
        ("trial_switch", {"withdraw-admit", "finish-admit"}),
        ("pack_memory", {"growth", "vs-eight-bases"}),
        ("planner_choice", {"digits-b4"}),
        ("methods", METHODS),
    ],
)
def test_quick_run_ends_with_rows_in_the_documented_form(benchmark: str, names: set[str]) -> None:
    rows = quick_rows(benchmark)
    assert {row["name"] for row in rows} == names
    for row in rows:
        assert set(row) == FIELDS
        assert row["device"].startswith("cpu: ")
        figures = [row[key] for key in ("ours", "peer", "ratio", "aim") if row[key] is not None]
        assert all(math.isfinite(figure) and figure > 0 for figure in figures)


@pytest.mark.parametrize("name", OWN)
def test_docstring_states_the_aim_of_every_ratio(name: str) -> None:
    docstring = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text())) or ""
    assert "ratio = " in docstring or "growth from" in docstring
    assert "at least" in docstring or "at most" in docstring


def test_what_does_not_fit_a_card_is_tried_with_half() -> None:
    tried: list[int] = []

    def make(size: int) -> Callable[[], object]:
        def step() -> None:
            tried.append(size)
            if size > 1:
                raise torch.OutOfMemoryError

        return step

    assert widest(make, 4) == 1
    assert tried == [4, 2, 1]


def test_rows_are_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    row = Row("a", 1.0, 2.0, "s", 2.0, 1.5, "cpu: test")
    finish([row])
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert json.loads(printed) == [row.__dict__]


def test_interleaved_sides_alternate_and_change_places() -> None:
    order: list[str] = []

    def side(name: str) -> float:
        order.append(name)
        return float(len(order))

    figures = interleaved({"a": lambda: side("a"), "b": lambda: side("b")}, 2)
    assert order == ["a", "b", "b", "a"]
    assert figures == {"a": [1.0, 4.0], "b": [2.0, 3.0]}


def test_saved_bytes_counts_each_activation_once_and_no_weight() -> None:
    frozen, trained = torch.randn(4, 3), torch.randn(8, 4, requires_grad=True)
    x = torch.randn(16, 8)

    def step() -> None:
        hidden = x @ trained  # saves x, 16 x 8
        squared = hidden * hidden  # saves hidden twice, 16 x 4
        (squared @ frozen).sum().backward()  # saves the frozen weight

    activations = 4 * (16 * 8 + 16 * 4)
    assert saved_bytes(step, [frozen]) == activations
    assert saved_bytes(step, []) == activations + 4 * 4 * 3
