"""Short runs on a tiny Llama."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from replora.config import (
    AdapterMethod,
    BackboneConfig,
    CommonsenseTask,
    DoraMethod,
    DoranMethod,
    FullMethod,
    HoraMethod,
    LoraMethod,
    LowRankMethod,
    MethodConfig,
    OptimConfig,
    PrefixMethod,
    ReploraMethod,
    RunConfig,
    TrainConfig,
)
from replora.models.base import Backbone
from replora.models.load import load_backbone
from replora.tasks.base import Task
from replora.tasks.load import load_task
from tests.contracts.packs import as_pack

#: Folders of the checkpoint and of the data.
Folders = tuple[Path, Path]

#: Every method whose targets are a language model's.
METHODS: dict[str, MethodConfig] = {
    "lora": LoraMethod(rank=4, targets=("query", "key", "value", "up", "down")),
    "lora-dropout": LoraMethod(rank=4, dropout=0.1),
    "replora": ReploraMethod(rank=4, hidden=8),
    "replora-plain": ReploraMethod(rank=4, hidden=8, plain_targets=("key", "gate", "up", "down", "output")),
    "dora": DoraMethod(rank=4, targets=("query", "value", "down")),
    "doran": DoranMethod(rank=4, hidden=8),
    "hora": HoraMethod(rank=4, hidden=8),
    "hora-unshared": HoraMethod(rank=4, hidden=8, shared=False, composition="weight-decomposed"),
    "adapter": AdapterMethod(bottleneck=5),
    "adapter-parallel": AdapterMethod(bottleneck=5, form="parallel", targets=("up", "down"), dropout=0.1),
    "prefix": PrefixMethod(tokens=3),
    "prefix-mlp": PrefixMethod(tokens=3, made="mlp", hidden=7),
    "full": FullMethod(),
}
LOW_RANK = {name: method for name, method in METHODS.items() if isinstance(method, LowRankMethod)}
PREFIXES = {name: method for name, method in METHODS.items() if isinstance(method, PrefixMethod)}
MODULES = PREFIXES | {name: method for name, method in METHODS.items() if isinstance(method, AdapterMethod)}


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
    return as_pack(task.split("val").take(torch.arange(count), None))
