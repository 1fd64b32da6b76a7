"""Plain Ray Tune with its own checkpoints: `python -m benchmarks._peers.tune_torture SPEC.json`.

The spec holds `runs` (RunConfigs), `folder`, `log` and `cores`; an experiment in the folder is restored.
Each trial appends to the log what it does, so that what was done twice can be counted.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import ray
from ray import tune

CACHE: dict[str, Any] = {}


def trial(config: dict[str, Any]) -> None:
    """One trial as Tune's documentation has it: from its checkpoint on, one with each report."""
    config = config["trial"]
    import torch

    from benchmarks._peers.lora import LoraTrainer, evaluate
    from replora.config import RunConfig
    from replora.models.load import load_backbone
    from replora.tasks.load import load_task
    from replora.train.streams import example_indices

    torch.set_num_threads(1)
    run = RunConfig.model_validate_json(config["run"])
    if not CACHE:
        CACHE["backbone"] = load_backbone(run.backbone, precision=run.train.precision, device="cpu")
        CACHE["task"] = load_task(run.task, precision=run.train.precision, device="cpu")
    task = CACHE["task"]
    torch.manual_seed(run.seed)
    trainer = LoraTrainer(
        CACHE["backbone"],
        ["qkv"],
        getattr(run.method, "rank", 8),
        task.head_width,
        run.optim,
        run.train.steps,
    )
    step = restore(trainer)
    note(config, "start", step)
    split, metrics = task.split("train"), {}
    while step < run.train.steps:
        batch = example_indices(run.seed, len(split), step * run.train.batch, run.train.batch)
        trainer.step(split.take(batch, None), task)
        step += 1
        if step % run.train.eval_every == 0 or step == run.train.steps:
            metrics = evaluate(trainer, task)
        if step % run.train.checkpoint_every == 0 or step == run.train.steps:
            note(config, "end" if step == run.train.steps else "step", step)
            save(trainer, step, metrics)


def save(trainer: Any, step: int, metrics: dict[str, float]) -> None:
    """Reports with a checkpoint."""
    import torch

    parts = ("optimizer", "scheduler", "head")
    state = {name: getattr(trainer, name).state_dict() for name in parts}
    with tempfile.TemporaryDirectory() as folder:
        torch.save({"step": step, "parameters": trainer.parameters, **state}, Path(folder, "state.pt"))
        tune.report({**metrics, "step": step}, checkpoint=tune.Checkpoint.from_directory(folder))


def restore(trainer: Any) -> int:
    """Steps of Tune's checkpoint, taken over; 0 without one."""
    import torch

    checkpoint = tune.get_checkpoint()
    if checkpoint is None:
        return 0
    with checkpoint.as_directory() as folder:
        state = torch.load(Path(folder, "state.pt"), weights_only=False)
    with torch.no_grad():
        for parameter, value in zip(trainer.parameters, state["parameters"], strict=True):
            parameter.copy_(value)
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.scheduler.load_state_dict(state["scheduler"])
    return int(state["step"])


def note(config: dict[str, Any], event: str, step: int) -> None:
    """Appends a line to the log, whole or not at all."""
    line = json.dumps({"trial": config["number"], "event": event, "step": step}) + "\n"
    handle = os.open(config["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(handle, line.encode())
    finally:
        os.close(handle)


def main() -> None:
    """Fits or restores the spec's experiment."""
    spec = json.loads(Path(sys.argv[1]).read_text())
    ray.init(
        num_cpus=spec["cores"], include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
    )
    trainable = tune.with_resources(trial, {"cpu": 1})
    configs = [
        {"run": json.dumps(run), "number": number, "log": spec["log"]}
        for number, run in enumerate(spec["runs"])
    ]
    space = tune.grid_search(configs)
    path = str(Path(spec["folder"]) / "peer")
    if tune.Tuner.can_restore(path):
        options: dict[str, Any] = {"param_space": {"trial": space}, "resume_errored": True}
        tuner = tune.Tuner.restore(path, trainable=trainable, **options)
    else:
        tuner = tune.Tuner(
            trainable,
            param_space={"trial": space},
            tune_config=tune.TuneConfig(reuse_actors=True),
            run_config=tune.RunConfig(
                name="peer",
                storage_path=spec["folder"],
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=-1),
                checkpoint_config=tune.CheckpointConfig(num_to_keep=2),
            ),
        )
    tuner.fit()


if __name__ == "__main__":
    main()
