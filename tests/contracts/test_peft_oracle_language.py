"""Direct factors are PEFT's LoRA and DoRA on a language model too: same start, same loss curve."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from replora.config import DoraMethod, LoraMethod, RunConfig
from replora.methods.bake import bake
from replora.methods.folder import SavedAdapter
from replora.models.base import Backbone
from replora.tasks.base import Task
from replora.train.optim import learning_rate
from replora.train.streams import example_indices
from tests.contracts.llamas import Folders, base, run
from tests.contracts.packs import losses_of_first, relative_gap
from tests.contracts.test_peft_oracle import starting_point

TARGETS = {"query": "q_proj", "value": "v_proj", "down": "down_proj"}
Method = LoraMethod | DoraMethod


def peft_model(backbone: Backbone, start: SavedAdapter, method: Method) -> nn.Module:
    """The Llama with stock PEFT's layers, which start with our A and B."""
    config = LoraConfig(
        r=method.rank,
        lora_alpha=method.alpha,  # type: ignore[arg-type]  # annotated int; any number works
        target_modules=list(TARGETS.values()),
        use_dora=isinstance(method, DoraMethod),
    )
    model: Any = copy.deepcopy(backbone.model)
    wrapped: Any = get_peft_model(model, config, autocast_adapter_dtype=False)
    state = dict(wrapped.named_parameters())
    with torch.no_grad():
        for target in bake(start, backbone):
            prefix = f"base_model.model.{target.module}"
            state[f"{prefix}.lora_A.default.weight"].copy_(target.a)
            state[f"{prefix}.lora_B.default.weight"].copy_(target.b)
    llama: nn.Module = wrapped.base_model.model
    return llama.train()


def peft_losses(config: RunConfig, backbone: Backbone, task: Task, llama: nn.Module) -> Tensor:
    """The textbook training loop."""
    parameters = [p for p in llama.parameters() if p.requires_grad]
    optim, split, losses = config.optim, task.split("train"), []
    assert optim.clip_norm is not None
    optimizer = torch.optim.AdamW(parameters, lr=optim.lr, weight_decay=optim.weight_decay)
    for step in range(config.train.steps):
        optimizer.param_groups[0]["lr"] = learning_rate(optim, step, config.train.steps)
        start = step * config.train.batch
        batch = split.take(example_indices(config.seed, len(split), start, config.train.batch), None)
        packed = {name: each.unsqueeze(0) for name, each in batch.items()}
        loss = task.loss(backbone.features(llama, batch).unsqueeze(0), packed).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, optim.clip_norm)
        optimizer.step()
        losses.append(loss.detach().double())
    return torch.stack(losses)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("fp64", 1e-10)])
@pytest.mark.parametrize("kind", [LoraMethod, DoraMethod])
def test_direct_factors_equal_peft_on_a_llama_over_100_steps(
    kind: type[Method], precision: str, tolerance: float, folders: Folders, tmp_path: Path
) -> None:
    method = kind(rank=4, alpha=16.0, targets=tuple(TARGETS))
    config = run(folders, method, steps=100, lr=1e-3)
    config = config.model_copy(update={"train": config.train.model_copy(update={"precision": precision})})
    backbone, task = base(config)
    start = starting_point(config, backbone, task, tmp_path / "start")
    theirs = peft_losses(config, backbone, task, peft_model(backbone, start, method))
    ours, _ = losses_of_first([config], tmp_path / "ours", (backbone, task))
    assert relative_gap(ours, theirs) < tolerance
    assert theirs[-10:].mean() < theirs[:10].mean()
