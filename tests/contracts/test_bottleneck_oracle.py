"""Bottleneck adapters train as a plain torch implementation of the published equations does."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from replora.config import AdapterMethod, RunConfig
from replora.models.base import Backbone
from replora.tasks.base import Task
from replora.train.model import SlotModel
from replora.train.optim import learning_rate
from replora.train.pack import Pack
from replora.train.streams import example_indices
from tests.contracts.packs import RecordingTask, base, relative_gap, run

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


def reference_losses(config: RunConfig, task: Task, model: nn.Module) -> Tensor:
    """The textbook training loop."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=config.optim.lr, weight_decay=config.optim.weight_decay)
    split, losses = task.split("train"), []
    for step in range(config.train.steps):
        optimizer.param_groups[0]["lr"] = learning_rate(config.optim, step, config.train.steps)
        start = step * config.train.batch
        batch = split.take(example_indices(config.seed, len(split), start, config.train.batch), None)
        loss = nn.functional.cross_entropy(model(batch["image"]), batch["label"])
        optimizer.zero_grad()
        loss.backward()
        assert config.optim.clip_norm is not None
        nn.utils.clip_grad_norm_(parameters, config.optim.clip_norm)
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


@pytest.mark.parametrize("name", METHODS)
def test_adapters_equal_plain_torch_over_100_steps(name: str, tmp_path: Path) -> None:
    config = run(METHODS[name], lr=1e-3, steps=100)
    backbone, task = base(config)
    start = SlotModel(backbone, task, config).initial(config)
    theirs = reference_losses(config, task, reference(backbone, METHODS[name], start))
    recording = RecordingTask(task)
    pack = Pack(config, backbone, recording, slots=1)
    pack.admit("ours", config, tmp_path)
    while pack.trials:
        pack.step()
    ours = torch.stack([loss[0] for loss in recording.losses])
    assert relative_gap(ours, theirs) < 1e-10
    assert theirs[-5:].mean() < theirs[:5].mean()
