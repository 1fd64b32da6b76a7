"""Direct factors are PEFT's LoRA (added) and DoRA (weight-decomposed): same start, same loss curve."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from replora.config import DoraMethod, LoraMethod, LowRankMethod, RunConfig
from replora.methods.bake import BakedTarget, bake
from replora.methods.folder import SavedAdapter, load_adapter
from replora.models.base import Backbone
from replora.tasks.base import Task
from replora.train.optim import learning_rate
from replora.train.pack import Pack
from replora.train.streams import example_indices
from tests.contracts.packs import RecordingTask, base, relative_gap, run

#: Whole linears: on timm's fused qkv stock PEFT would share one A and adapt the key as well.
TARGETS = {"output": "attn.proj", "up": "mlp.fc1", "down": "mlp.fc2"}


def peft_model(
    backbone: Backbone, targets: Sequence[BakedTarget], method: LowRankMethod, head: Mapping[str, Tensor]
) -> nn.Module:
    """The backbone under stock PEFT LoRA or DoRA, with our starting A, B and head."""
    model = copy.deepcopy(backbone.model)
    model.head = nn.Linear(backbone.width, head["bias"].numel(), dtype=head["bias"].dtype)
    config = LoraConfig(
        r=method.rank,
        lora_alpha=method.alpha,  # type: ignore[arg-type]  # annotated int; any number works
        target_modules=list(TARGETS.values()),
        modules_to_save=["head"],
        use_dora=isinstance(method, DoraMethod),
    )
    wrapped = get_peft_model(model, config, autocast_adapter_dtype=False)
    state = dict(wrapped.named_parameters())
    with torch.no_grad():
        for target in targets:
            prefix = f"base_model.model.{target.module}"
            state[f"{prefix}.lora_A.default.weight"].copy_(target.a)
            state[f"{prefix}.lora_B.default.weight"].copy_(target.b)
        for name in ("weight", "bias"):
            state[f"base_model.model.head.modules_to_save.default.{name}"].copy_(head[name])
    return wrapped.train()


def peft_losses(config: RunConfig, task: Task, wrapped: nn.Module) -> Tensor:
    """The textbook training loop around the PEFT model."""
    parameters = [p for p in wrapped.parameters() if p.requires_grad]
    optim = config.optim
    assert optim.clip_norm is not None
    optimizer = torch.optim.AdamW(parameters, lr=optim.lr, weight_decay=optim.weight_decay)
    split, losses = task.split("train"), []
    for step in range(config.train.steps):
        optimizer.param_groups[0]["lr"] = learning_rate(optim, step, config.train.steps)
        start = step * config.train.batch
        batch = split.take(example_indices(config.seed, len(split), start, config.train.batch), None)
        loss = nn.functional.cross_entropy(wrapped(batch["image"]), batch["label"])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, optim.clip_norm)
        optimizer.step()
        losses.append(loss.detach().double())
    return torch.stack(losses)


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


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("fp64", 1e-10)])
@pytest.mark.parametrize("kind", [LoraMethod, DoraMethod])
def test_direct_factors_equal_peft_over_100_steps(
    kind: type[LoraMethod] | type[DoraMethod], precision: str, tolerance: float, tmp_path: Path
) -> None:
    method = kind(rank=4, alpha=16.0, targets=tuple(TARGETS))
    config = run(method, lr=1e-3, steps=100, batch=16, precision=precision)
    backbone, task = base(config)
    start = starting_point(config, backbone, task, tmp_path / "start")
    head = {name: start.tensors[f"head.{name}"] for name in ("weight", "bias")}
    theirs = peft_losses(config, task, peft_model(backbone, bake(start, backbone), method, head))
    recording = RecordingTask(task)
    pack = Pack(config, backbone, recording, slots=1)
    pack.admit("ours", config, tmp_path / "ours")
    while pack.trials:
        pack.step()
    ours = torch.stack([loss[0] for loss in recording.losses])
    assert relative_gap(ours, theirs) < tolerance
    assert theirs[-1] < theirs[0]
