"""Short runs on a tiny Llama."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from replora.config import BackboneConfig, CommonsenseTask, MethodConfig, OptimConfig, RunConfig, TrainConfig
from replora.models.base import Backbone
from replora.models.load import load_backbone
from replora.tasks.base import Task
from replora.tasks.load import load_task

#: Folders of the checkpoint and of the data.
Folders = tuple[Path, Path]


def run(
    folders: Folders, method: MethodConfig, *, seed: int = 0, steps: int = 20, lr: float = 2e-3
) -> RunConfig:
    """A short run on the language model in fp64."""
    checkpoint, data = folders
    task = CommonsenseTask(root=data, cutoff=96, val_items=4, eval_batch=3, new_tokens=4, beams=2)
    return RunConfig(
        backbone=BackboneConfig(name=f"hf/{checkpoint}"),
        method=method,
        task=task,
        optim=OptimConfig(lr=lr, weight_decay=1e-2),
        train=TrainConfig(steps=steps, batch=2, eval_every=steps, checkpoint_every=1000, precision="fp64"),
        seed=seed,
    )


def base(config: RunConfig) -> tuple[Backbone, Task]:
    precision = config.train.precision
    backbone = load_backbone(config.backbone, precision=precision, device="cpu")
    task = load_task(config.task, precision=precision, device="cpu", processor=backbone.processor)
    return backbone, task


def texts(task: Task, count: int = 3) -> dict[str, Tensor]:
    """A batch of a pack of one."""
    batch = task.split("val").take(torch.arange(count), None)
    return {name: each.unsqueeze(0) for name, each in batch.items()}
