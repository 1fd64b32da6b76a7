"""Products with frozen weights: no gradient of the weight, and on a CPU the faster matrix library.

PyTorch sends fp32 linears to MKL, which on AMD processors stays on its slower path: oneDNN, which
torch also carries (and uses for bf16 and in its compiler), runs the same fp32 products about twice
as fast there (docs/log.md, 2026-11-24) and rounds each row alike whatever the number of rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["FrozenLinear", "freeze_linears", "frozen_linear", "input_gradient"]


def frozen_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x W^T + b` for rows `[..., I]`, outside autograd."""
    if _by_onednn(x, weight):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # type: ignore[no-any-return]
    return functional.linear(x, weight, bias)


def input_gradient(dy: Tensor, weight: Tensor) -> Tensor:
    """`dy W` for rows `[..., O]`, outside autograd."""
    if _by_onednn(dy, weight):
        dx: Tensor = torch.ops.mkldnn._linear_pointwise(dy, weight.t(), None, "none", [], "")
        return dx
    return torch.matmul(dy, weight)


class FrozenLinear(nn.Module):
    """A linear that does not train, sharing the weights of `linear`."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """`[..., I]` to `[..., O]`."""
        return _FrozenLinear.apply(x, self.weight, self.bias)  # type: ignore[no-any-return]


def freeze_linears(model: nn.Module) -> None:
    """Replaces every `nn.Linear` of a frozen module tree by a `FrozenLinear` on the same weights."""
    for path, module in list(model.named_modules()):
        if type(module) is nn.Linear:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, FrozenLinear(module))


class _FrozenLinear(torch.autograd.Function):
    """Saves nothing but the weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return frozen_linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return input_gradient(grads[0], weight), None, None


def _by_onednn(x: Tensor, weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype is torch.float32 and _ONEDNN and x.numel() > 0


_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
