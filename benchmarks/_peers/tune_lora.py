"""Plain Ray Tune over PEFT-LoRA trials: one per core, one thread each.

`python -m benchmarks._peers.tune_lora SPEC.json`; the spec holds `runs` (RunConfigs, one per trial), `mode`
(`default`: a process per trial, as Tune comes; `reuse`: reused actors with base and data cached in
the process), `cores` and `metric`. Prints one line of JSON: trials, errors, best, when each trial reported
last (unix seconds), and when `fit` ended.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
from ray import tune

#: Base and data of this worker process; survives from trial to trial where Tune reuses the actor.
CACHE: dict[str, Any] = {}


def trial(config: dict[str, Any]) -> None:
    """One trial as a skilled user writes it: heavy imports, base and data once per process."""
    import torch

    from benchmarks._peers.lora import train_lora
    from replora.config import RunConfig
    from replora.models.load import load_backbone
    from replora.tasks.load import load_task

    torch.set_num_threads(1)
    run = RunConfig.model_validate_json(config["run"])
    if not CACHE:
        precision = run.train.precision
        CACHE["backbone"] = load_backbone(run.backbone, precision=precision, device="cpu")
        CACHE["task"] = load_task(run.task, precision=precision, device="cpu")
    for metrics in train_lora(run, CACHE["backbone"], CACHE["task"], ["qkv"]):
        tune.report({**metrics, "moment": time.time()})  # Tune's own `timestamp` is whole seconds


def run_tune(spec: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Fit the spec's runs and summarize."""
    ray.init(
        num_cpus=spec["cores"], include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
    )
    results = tune.Tuner(
        tune.with_resources(trial, {"cpu": 1}),
        param_space={"run": tune.grid_search([json.dumps(run) for run in spec["runs"]])},
        tune_config=tune.TuneConfig(reuse_actors=spec["mode"] == "reuse"),
        run_config=tune.RunConfig(storage_path=str(folder), verbose=0),
    ).fit()
    ended = time.time()
    metrics = [results[index].metrics for index in range(len(results))]
    best = max((found[spec["metric"]] for found in metrics if found), default=None)
    reported = sorted(found["moment"] for found in metrics if found)
    counts = {"trials": len(results), "errors": len(results.errors)}
    return {**counts, "best": best, "reported": reported, "ended": ended}


def main() -> None:
    """Read the spec, run it in a temporary folder, print the summary."""
    spec = json.loads(Path(sys.argv[1]).read_text())
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(run_tune(spec, Path(folder))), flush=True)


if __name__ == "__main__":
    main()
