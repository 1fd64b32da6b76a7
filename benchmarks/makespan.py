"""Time of the paper's 25-point grid, from the start of the sweep to the last result, against plain Ray Tune.

The grid is that of `sweeps/spaces/digits-grid.yaml` (learning rate x weight decay) on the digits ViT:
same model, data, steps, batch and evaluations on both sides, each started cold as from a shell, so that
Python's imports and Ray's start count. What a machine does once and remembers (pre-training the small ViT,
measuring which packs pay, MLflow's schema) is done before, in sweeps that are printed but not counted.
Ours trains RepLoRA on packs and records every trial in its ledger and in MLflow; the peer trains PEFT's
LoRA, which is cheaper, one trial per core with one thread, with fused AdamW and without tracking.

Rows (ratio = the peer's time / ours):
    vs-tune-default    against Tune as it comes, a process per trial, batch 16: at least 4.0
    vs-tune-reuse      against `reuse_actors=True` with base and data cached, batch 16: at least 1.5
    vs-tune-reuse-b4   the same at batch 4: at least 2.2
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from benchmarks._common import (
    ROOT,
    ColdRun,
    Row,
    cores,
    finish,
    fresh_cache,
    interleaved,
    is_quick,
    machine,
    median,
    run_cold,
    say,
)
from replora.config import LoraMethod, RunConfig
from replora.load import load, run_from
from sweeps.config import SweepConfig

GRID = ROOT / "sweeps/spaces/digits-grid.yaml"


def grid(batch: int, *, quick: bool) -> SweepConfig:
    """The grid with this batch, without confirmation, on the metric that both sides report."""
    config = load(SweepConfig, GRID, [f"run.train.batch={batch}"])
    changes: dict[str, Any] = {"name": "makespan", "confirm": {}}
    if quick:
        changes["space"] = {key: {"values": values[:2]} for key, values in values_of(config).items()}
        changes["run"] = config.run.model_dump() | {"train": {"steps": 4, "batch": batch, "eval_every": 2}}
    return SweepConfig.model_validate(config.model_dump() | changes)


def values_of(config: SweepConfig) -> dict[str, tuple[Any, ...]]:
    """The grid's values by dotted key."""
    return {key: domain.values or () for key, domain in config.space.items()}


def runs_of(config: SweepConfig) -> list[RunConfig]:
    """Every point of the grid as a LoRA run of the same rank."""
    values = values_of(config)
    points = [dict(zip(values, point, strict=True)) for point in product(*values.values())]
    method = LoraMethod(rank=getattr(config.run.method, "rank", 8))
    return [run_from(config.run, point).model_copy(update={"method": method}) for point in points]


def ours(config: SweepConfig, method: dict[str, Any] | None = None) -> float:
    """Seconds from the start of `replora sweep` to its ledger's last finished trial."""
    document = config.model_dump(mode="json")
    document["run"]["method"] = method or document["run"]["method"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "sweep.yaml").write_text(yaml.safe_dump(document))
        done = run_cold(["-m", "replora", "sweep", "sweep.yaml", "--json"], 1, folder)
        answer = json.loads(done.stdout)
        states = [trial["state"] for trial in answer["trials"]]
        if states != ["finished"] * len(runs_of(config)):
            raise RuntimeError(f"our sweep ended with the states {states}")
        ledger = folder / answer["sweep_dir"] / "ledger.jsonl"
        lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    last = max(line["time"] for line in lines if line["event"] == "finished")
    return told("ours", last, done)


def tune(mode: str, config: SweepConfig) -> float:
    """Seconds from the start of the peer's script to the end of `Tuner.fit`."""
    runs = [run.model_dump(mode="json") for run in runs_of(config)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        spec = {"runs": runs, "mode": mode, "cores": cores(), "metric": "accuracy"}
        (folder / "spec.json").write_text(json.dumps(spec))
        done = run_cold(["-m", "benchmarks._peers.tune_lora", "spec.json"], 1, folder)
    answer = json.loads(done.stdout.splitlines()[-1])
    if answer["errors"] or answer["trials"] != len(runs):
        raise RuntimeError(f"the peer's sweep went wrong: {answer}")
    return told(mode, answer["ended"], done)


def told(side: str, ended: float, done: ColdRun) -> float:
    """Seconds to the last result, said aloud beside the time of the whole process."""
    seconds = ended - done.started
    say(f"  {side}: {seconds:.1f} s to the last result, {done.seconds:.1f} s to the end of the process")
    return seconds


def measure(*, quick: bool) -> dict[str, float]:
    """Median seconds of every side."""
    wide, narrow = grid(16, quick=quick), grid(4, quick=quick)
    lora = LoraMethod().model_dump(mode="json")
    mine: dict[str, Callable[[], float]] = {
        "ours": lambda: ours(wide),
        "ours-b4": lambda: ours(narrow),
        "ours-lora": lambda: ours(wide, lora),
    }
    theirs: dict[str, Callable[[], float]] = {
        "default": lambda: tune("default", wide),
        "reuse": lambda: tune("reuse", wide),
        "reuse-b4": lambda: tune("reuse", narrow),
    }
    if not quick:
        say("first sweeps of a machine: they pre-train the base and measure packs, and are not counted")
        for first in mine.values():
            first()
    figures = interleaved({**mine, **theirs}, 1 if quick else 3)
    return {name: median(values) for name, values in figures.items()}


def main() -> None:
    quick = is_quick(__doc__)
    with nullcontext() if quick else fresh_cache():
        seconds = measure(quick=quick)
    say("medians in seconds: " + ", ".join(f"{name} {value:.2f}" for name, value in seconds.items()))
    pairs = (
        ("vs-tune-default", "ours", "default", 4.0),
        ("vs-tune-reuse", "ours", "reuse", 1.5),
        ("vs-tune-reuse-b4", "ours-b4", "reuse-b4", 2.2),
    )
    finish(
        [
            Row(name, seconds[a], seconds[b], "s", seconds[b] / seconds[a], aim, machine())
            for name, a, b, aim in pairs
        ]
    )


if __name__ == "__main__":
    main()
