"""Direct factors are PEFT's LoRA (added) and DoRA (weight-decomposed): same start, same loss curve."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from replora.config import DoraMethod, LoraMethod
from replora.methods.bake import bake
from replora.methods.folder import SavedAdapter
from replora.models.base import Backbone
from tests.contracts.oracles import classified, starting_point, textbook_losses, under_peft
from tests.contracts.packs import base, losses_of_first, relative_gap, run

#: Whole linears: on timm's fused qkv stock PEFT would share one A and adapt the key as well.
TARGETS = {"output": "attn.proj", "up": "mlp.fc1", "down": "mlp.fc2"}


def peft_model(backbone: Backbone, start: SavedAdapter, method: LoraMethod | DoraMethod) -> nn.Module:
    """The backbone under stock PEFT LoRA or DoRA, with our starting A, B and head."""
    model = copy.deepcopy(backbone.model)
    weight, bias = start.tensors["head.weight"], start.tensors["head.bias"]
    model.head = nn.Linear(backbone.width, bias.numel(), dtype=bias.dtype)
    wrapped = under_peft(
        model, method, list(TARGETS.values()), bake(start, backbone), modules_to_save=["head"]
    )
    head = wrapped.get_submodule("base_model.model.head.modules_to_save.default")
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    return wrapped


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("fp64", 1e-10)])
@pytest.mark.parametrize("kind", [LoraMethod, DoraMethod])
def test_direct_factors_equal_peft_over_100_steps(
    kind: type[LoraMethod] | type[DoraMethod], precision: str, tolerance: float, tmp_path: Path
) -> None:
    method = kind(rank=4, alpha=16.0, targets=tuple(TARGETS))
    config = run(method, lr=1e-3, steps=100, batch=16, precision=precision)
    backbone, task = base(config)
    wrapped = peft_model(backbone, starting_point(config, backbone, task, tmp_path / "start"), method)
    theirs = textbook_losses(config, task, wrapped, classified(wrapped))
    ours, _ = losses_of_first([config], tmp_path / "ours", (backbone, task))
    assert relative_gap(ours, theirs) < tolerance
    assert theirs[-1] < theirs[0]
