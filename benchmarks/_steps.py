"""One optimizer step of a method of ours and of a peer, on the same base, data and batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks._models import llama_30m, random_task, random_vit
from benchmarks._peers.lora import PeerTrainer
from replora.config import MethodConfig, RunConfig, TrainConfig
from replora.models.base import Backbone
from replora.tasks.base import Task
from replora.train.pack import Pack

__all__ = ["STEPS", "Case", "Side", "cases", "our_side", "peer_side"]

STEPS = 100_000  # never reached: no evaluation and no checkpoint falls into a measured step


@dataclass(frozen=True)
class Case:
    """A base with a task of random data, PEFT's names of query and value, and the batch."""

    name: str
    backbone: Backbone
    task: Task
    peft_targets: tuple[str, ...]
    batch: int


def cases(*, quick: bool) -> list[Case]:
    """A Llama of 30 million parameters (4 x 128 tokens) and a ViT-S/16 at 224 px (batch 8)."""
    torch.manual_seed(0)
    tokens = torch.randint(8192, (16, 8 if quick else 128))
    llama = llama_30m(1 if quick else 8)
    found = [Case("llama-30m", llama, random_task("tokens", tokens), ("q_proj", "v_proj"), 4)]
    if not quick:
        vit = random_vit("vit_small_patch16_224")
        images = torch.randn(16, 3, 224, 224)
        found.append(Case("vit-s16", vit, random_task("image", images), ("qkv",), 8))
    return found


@dataclass(frozen=True)
class Side:
    """One optimizer step, and the frozen weights that it runs on."""

    step: Callable[[], object]
    frozen: tuple[Tensor, ...]


def our_side(case: Case, method: MethodConfig, folder: Path) -> Side:
    """A method as a pack of one."""
    train = TrainConfig(steps=STEPS, batch=case.batch, eval_every=STEPS, checkpoint_every=STEPS)
    config = RunConfig(method=method, train=train)
    pack = Pack(config, case.backbone, case.task, 1)
    pack.admit("solo", config, folder)
    return Side(pack.step, tuple(case.backbone.model.parameters()))


def peer_side(case: Case, trainer: PeerTrainer) -> Side:
    """A peer's step; batches in a shuffled order, as ours."""
    split = case.task.split("train")

    def step() -> Tensor:
        chosen = torch.randperm(len(split))[: case.batch]
        return trainer.step(split.take(chosen, None), case.task)

    return Side(step, tuple(p for p in trainer.model.parameters() if not p.requires_grad))
