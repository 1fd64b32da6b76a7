"""Peers that a pack is compared with: a textbook training loop, and stock PEFT's LoRA and DoRA."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from replora.config import DoraMethod, LoraMethod, RunConfig
from replora.methods.bake import BakedTarget
from replora.methods.folder import SavedAdapter, load_adapter
from replora.models.base import Backbone
from replora.tasks.base import Batch, Task
from replora.train.optim import learning_rate
from replora.train.pack import Pack
from replora.train.streams import example_indices


def textbook_losses(
    config: RunConfig, task: Task, model: nn.Module, loss_of: Callable[[Batch], Tensor]
) -> Tensor:
    """Losses by step of a plain training loop over what of a model requires a gradient."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optim, split, losses = config.optim, task.split("train"), []
    assert optim.clip_norm is not None
    optimizer = torch.optim.AdamW(parameters, lr=optim.lr, weight_decay=optim.weight_decay)
    for step in range(config.train.steps):
        optimizer.param_groups[0]["lr"] = learning_rate(optim, step, config.train.steps)
        start = step * config.train.batch
        batch = split.take(example_indices(config.seed, len(split), start, config.train.batch), None)
        loss = loss_of(batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, optim.clip_norm)
        optimizer.step()
        losses.append(loss.detach().double())
    return torch.stack(losses)


def classified(model: nn.Module) -> Callable[[Batch], Tensor]:
    """The loss of an image classifier on a batch."""
    return lambda batch: nn.functional.cross_entropy(model(batch["image"]), batch["label"])


def starting_point(config: RunConfig, backbone: Backbone, task: Task, folder: Path) -> SavedAdapter:
    """Our start, through the adapter that a run of zero learning would save."""
    pack = Pack(config, backbone, task, slots=1)
    still = config.model_copy(
        update={
            "train": config.train.model_copy(update={"steps": 1}),
            "optim": config.optim.model_copy(update={"lr": 1e-300, "weight_decay": 0.0}),
        }
    )
    pack.admit("start", still, folder)
    while pack.trials:
        pack.step()
    return load_adapter(folder / "adapter")


def under_peft(
    model: nn.Module,
    method: LoraMethod | DoraMethod,
    modules: Sequence[str],
    start: Sequence[BakedTarget],
    **options: Any,
) -> nn.Module:
    """A copy of a model under stock PEFT's LoRA or DoRA, with our starting A and B.

    Args:
        model: The frozen base.
        method: Ours, of which PEFT gets the rank, the scale and whether the update is decomposed.
        modules: Names of the linears to adapt.
        start: Our factors.
        options: Further arguments of PEFT's `LoraConfig`.
    """
    config = LoraConfig(
        r=method.rank,
        lora_alpha=method.alpha,  # type: ignore[arg-type]  # annotated int; any number works
        target_modules=list(modules),
        use_dora=isinstance(method, DoraMethod),
        **options,
    )
    wrapped: nn.Module = get_peft_model(copy.deepcopy(model), config, autocast_adapter_dtype=False)
    state = dict(wrapped.named_parameters())
    with torch.no_grad():
        for target in start:
            prefix = f"base_model.model.{target.module}"
            state[f"{prefix}.lora_A.default.weight"].copy_(target.a)
            state[f"{prefix}.lora_B.default.weight"].copy_(target.b)
    return wrapped.train()
