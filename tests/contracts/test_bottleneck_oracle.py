"""Bottleneck adapters train as a plain torch implementation of the published equations does."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from replora.config import AdapterMethod
from replora.models.base import Backbone
from replora.train.model import SlotModel
from tests.contracts.oracles import classified, textbook_losses
from tests.contracts.packs import base, losses_of_first, relative_gap, run

PLACES = {"output": "attn.proj", "up": "mlp.fc1", "down": "mlp.fc2"}
ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU}
METHODS = {
    "houlsby": AdapterMethod(bottleneck=6, targets=("output", "down"), activation="gelu", bias=True),
    "llm-adapters-series": AdapterMethod(bottleneck=6, targets=("down",)),
    "llm-adapters-parallel": AdapterMethod(bottleneck=6, form="parallel", targets=("up", "down")),
    "scaled-parallel": AdapterMethod(
        bottleneck=6, form="parallel", targets=("down",), activation="relu", scale=4.0, bias=True
    ),
}


class Adapted(nn.Module):
    """A linear with one adapter, as the papers draw it."""

    def __init__(self, linear: nn.Linear, method: AdapterMethod) -> None:
        super().__init__()
        self.linear, self.method = linear, method
        read = linear.out_features if method.form == "series" else linear.in_features
        self.down = nn.Linear(read, method.bottleneck, bias=method.bias, dtype=linear.weight.dtype)
        self.up = nn.Linear(
            method.bottleneck, linear.out_features, bias=method.bias, dtype=linear.weight.dtype
        )
        self.act = ACTIVATIONS[method.activation]()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        added: Tensor = self.up(self.act(self.down(y if self.method.form == "series" else x)))
        return y + self.method.scale * added


def reference(backbone: Backbone, method: AdapterMethod, start: Mapping[str, Tensor]) -> nn.Module:
    """The backbone with such adapters and a head, at our start."""
    model = copy.deepcopy(backbone.model).requires_grad_(False)
    model.head = nn.Linear(backbone.width, len(start["head.bias"]), dtype=torch.float64)
    with torch.no_grad():
        for target in backbone.targets:
            if target.name in method.targets:
                parent = model.get_submodule(target.module.rpartition(".")[0])
                linear = model.get_submodule(target.module)
                assert isinstance(linear, nn.Linear)
                adapted = Adapted(linear, method)
                setattr(parent, target.module.rpartition(".")[2], adapted)
                adapted.down.weight.copy_(start[f"{target.name}.down"][target.block].T)
                adapted.up.weight.copy_(start[f"{target.name}.up"][target.block].T)
                if method.bias:
                    adapted.down.bias.copy_(start[f"{target.name}.down_bias"][target.block])
                    adapted.up.bias.copy_(start[f"{target.name}.up_bias"][target.block])
        model.head.weight.copy_(start["head.weight"])
        model.head.bias.copy_(start["head.bias"])
    return model


@pytest.mark.parametrize("name", METHODS)
def test_adapters_equal_plain_torch_over_100_steps(name: str, tmp_path: Path) -> None:
    config = run(METHODS[name], lr=1e-3, steps=100)
    backbone, task = base(config)
    start = SlotModel(backbone, task, config).initial(config)
    model = reference(backbone, METHODS[name], start)
    theirs = textbook_losses(config, task, model, classified(model))
    ours, _ = losses_of_first([config], tmp_path, (backbone, task))
    assert relative_gap(ours, theirs) < 1e-10
    assert theirs[-5:].mean() < theirs[:5].mean()
