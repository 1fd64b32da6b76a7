"""A bottleneck adapter as the paper draws it, in plain modules: PEFT has none."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import Tensor, nn

__all__ = ["bottleneck_model"]


class Adapted(nn.Module):
    """A linear followed by `y + W_up tanh(W_down y)`."""

    def __init__(self, linear: nn.Linear, width: int) -> None:
        super().__init__()
        self.linear = linear
        self.down = nn.Linear(linear.out_features, width, bias=False)
        self.up = nn.Linear(width, linear.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., I]` to `[..., O]`."""
        y: Tensor = self.linear(x)
        added: Tensor = self.up(self.down(y).tanh())
        return y + added


def bottleneck_model(base: nn.Module, paths: Sequence[str], width: int) -> nn.Module:
    """A frozen copy of the base with an adapter behind every linear at `paths`."""
    model = copy.deepcopy(base).requires_grad_(False)
    for path in paths:
        parent, _, name = path.rpartition(".")
        linear = model.get_submodule(path)
        assert isinstance(linear, nn.Linear)
        setattr(model.get_submodule(parent), name, Adapted(linear, width))
    return model
