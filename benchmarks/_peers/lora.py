"""Stock PEFT LoRA in a plain training loop, tuned as a skilled user would on one CPU thread."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from peft import LoraConfig
from peft import inject_adapter_in_model as inject_adapter
from torch import Tensor, nn

from replora.config import OptimConfig, RunConfig
from replora.models.base import Backbone
from replora.tasks.base import Task

__all__ = ["LoraTrainer", "PeerTrainer", "lora_model", "train_lora"]

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda share: 1.0,
    "linear": lambda share: 1.0 - share,
    "cosine": lambda share: 0.5 * (1.0 + math.cos(math.pi * share)),
}


def lora_model(backbone: Backbone, targets: Sequence[str], rank: int, *, use_dora: bool = False) -> nn.Module:
    """A copy of the base under LoRA (or DoRA) of PEFT; without targets, the bare copy.

    Args:
        backbone: Frozen base; it is copied, so that one load serves many trials.
        targets: Names of the linears, as PEFT takes them, for example `("qkv",)`.
        rank: LoRA's r; alpha is the same.
        use_dora: Whether the weight is decomposed.
    """
    model = copy.deepcopy(backbone.model)
    if not targets:
        return model
    config = LoraConfig(
        r=rank, lora_alpha=rank, target_modules=list(targets), lora_dropout=0.0, use_dora=use_dora
    )
    return inject_adapter(config, model)


class PeerTrainer:
    """An adapted model plus a linear head, with AdamW, schedule and clipping.

    AdamW is the fused one: the fastest of PyTorch's three for tensors this small.

    Args:
        model: The base with its adapter; what requires a gradient trains.
        backbone: Gives the features and their width.
        classes: Outputs of the head.
        optim: Learning rate, weight decay, schedule and clipping.
        steps: Length of the schedule.
    """

    def __init__(
        self, model: nn.Module, backbone: Backbone, classes: int, optim: OptimConfig, steps: int
    ) -> None:
        self.model = model
        self.head = nn.Linear(backbone.width, classes)
        self.features = backbone.features
        self.clip_norm = optim.clip_norm
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.parameters += list(self.head.parameters())
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=optim.lr,
            weight_decay=optim.weight_decay,
            betas=(optim.beta1, optim.beta2),
            eps=optim.eps,
            fused=True,
        )
        shape = SCHEDULES[optim.schedule]
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda done: shape(done / steps))

    def output(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits `[B, C]` of a batch `[B, ...]`."""
        return self.head(self.features(self.model, batch))  # type: ignore[no-any-return]

    def step(self, batch: Mapping[str, Tensor], task: Task) -> Tensor:
        """Loss of one full optimizer step: forward, backward, clipping, AdamW, schedule."""
        with_slot = {name: value.unsqueeze(0) for name, value in batch.items()}
        loss = task.loss(self.output(batch).unsqueeze(0), with_slot).sum()
        loss.backward()
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.clip_norm, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.scheduler.step()
        return loss.detach()


class LoraTrainer(PeerTrainer):
    """LoRA of PEFT on the named linears."""

    def __init__(
        self,
        backbone: Backbone,
        targets: Sequence[str],
        rank: int,
        classes: int,
        optim: OptimConfig,
        steps: int,
    ) -> None:
        super().__init__(lora_model(backbone, targets, rank), backbone, classes, optim, steps)


def train_lora(
    config: RunConfig, backbone: Backbone, task: Task, targets: Sequence[str]
) -> list[dict[str, float]]:
    """Validation metrics of every evaluation of one LoRA run with the run's optimizer, length and rank."""
    torch.manual_seed(config.seed)
    rank = getattr(config.method, "rank", 8)
    trainer = LoraTrainer(backbone, targets, rank, task.head_width, config.optim, config.train.steps)
    split, order = task.split("train"), torch.empty(0, dtype=torch.long)
    reports = []
    for step in range(1, config.train.steps + 1):
        if len(order) < config.train.batch:
            order = torch.cat([order, torch.randperm(len(split))])
        chosen, order = order[: config.train.batch], order[config.train.batch :]
        trainer.step(split.take(chosen, None), task)
        if step % config.train.eval_every == 0 or step == config.train.steps:
            reports.append(evaluate(trainer, task))
    return reports


def evaluate(trainer: PeerTrainer, task: Task) -> dict[str, float]:
    """Metrics of the whole validation split."""

    def forward(batch: Mapping[str, Tensor]) -> Tensor:
        return trainer.output({name: value.flatten(0, 1) for name, value in batch.items()}).unsqueeze(0)

    with torch.inference_mode():
        return task.evaluate(forward, 1, "val")[0]
