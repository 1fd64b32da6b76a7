"""Samples that Optuna with ASHA on packs needs to reach the full grid's best.

The grid is `sweeps/spaces/digits-grid.yaml` with its confirmation over fresh seeds: its winner's mean and
interval are the target. The search is `sweeps/spaces/digits-optuna.yaml`, run once for each search seed.
It reaches the best when a trial that was trained to its full length has an objective inside the interval
or above it. A sample is one training example of one optimizer step; every trial's samples up to that
moment count, pruned and unfinished ones too. A search that never gets there counts as the whole of its
own budget plus the grid's.

Row (ratio = samples until then / samples of the grid's search, median over search seeds): at most 0.35
"""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks._common import ROOT, Row, finish, is_quick, machine, median, say
from replora.load import load
from sweeps.best import select
from sweeps.config import SweepConfig
from sweeps.ledger import read_ledger
from sweeps.run import run_sweep

SPACES = ROOT / "sweeps/spaces"
SHORT = {"run": {"train": {"steps": 4, "eval_every": 2}}}


def sweep(name: str, folder: Path, changes: dict[str, Any]) -> Path:
    """Runs a shipped sweep in this process, so that the order of its trials repeats; returns its folder."""
    config = load(SweepConfig, SPACES / f"{name}.yaml")
    layout = {"hosts": 1, "slots": 5, "threads": 1}
    document = config.model_dump() | {"backend": "in-process", "resources": layout} | changes
    run_sweep(SweepConfig.model_validate(document), folder)
    return folder


def target_of(folder: Path) -> tuple[float, float]:
    """Mean of the grid's winner and the low end of its interval."""
    best = select(read_ledger(folder)).best
    if best is None or best.interval is None:
        raise RuntimeError(f"the grid in {folder} has no winner with an interval")
    return best.mean, best.interval.low


def samples_until(folder: Path, target: float) -> tuple[int, bool]:
    """Samples of a sweep's search until a finished trial reaches the target, and whether one did."""
    steps: dict[str, int] = {}
    batches: dict[str, int] = {}

    def spent() -> int:
        return sum(count * batches[trial] for trial, count in steps.items())

    for line in map(json.loads, (folder / "ledger.jsonl").read_text().splitlines()):
        trial, event = line["trial"], line["event"]
        if event == "asked" and line["stage"] == "search":
            batches[trial] = line["config"]["train"]["batch"]
        if trial in batches and "step" in line:
            steps[trial] = max(steps.get(trial, 0), line["step"])
            if event == "finished" and line["objective"] >= target:
                return spent(), True
    return spent(), False


def search(folder: Path, seed: int, *, quick: bool) -> Path:
    """Runs the Optuna sweep with a search seed, without its confirmation."""
    shipped = load(SweepConfig, SPACES / "digits-optuna.yaml").search.model_dump()
    tiny = {"trials": 3} if quick else {}
    changes = {"search": shipped | tiny | {"seed": seed}, "confirm": {}}
    return sweep("digits-optuna", folder, changes | ({**SHORT, "pruner": {}} if quick else {}))


def main() -> None:
    quick = is_quick(__doc__)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        confirm = {"confirm": {"top": 1, "seeds": [1, 2]}}
        grid = sweep("digits-grid", Path(name, "grid"), SHORT | confirm if quick else {})
        mean, low = target_of(grid)
        budget, _ = samples_until(grid, math.inf)
        say(f"  the grid's best: {mean:.4f}, interval from {low:.4f}; its budget: {budget} samples")
        shares = []
        for seed in range(1 if quick else 5):
            samples, reached = samples_until(search(Path(name, str(seed)), seed, quick=quick), low)
            shares.append((samples + (0 if reached else budget)) / budget)
            say(f"  search seed {seed}: {samples} samples, {'reached' if reached else 'not reached'}")
    share = median(shares)
    say(f"  shares of the grid's budget: {', '.join(f'{value:.3f}' for value in sorted(shares))}")
    finish([Row("optuna-asha", share * budget, budget, "samples", share, 0.35, machine())])


if __name__ == "__main__":
    main()
