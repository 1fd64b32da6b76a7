r"""The one low-rank layer: a frozen linear with K adapters, each on its own rows of the batch.

    y_k = g_k (W x_k + scale_k B_k A_k x_k) + b          k = slot

The gain `g_k` of each output is 1 unless the weight is decomposed (replora.methods.composition).

Rows `[K * B, ..., I]` arrive slot by slot. Forward and backward are one autograd function: the base
product and the batched low-rank products write into the same buffers; only x is saved, and where layers are
narrow the `[K, M, T * R]` inner activations; no gradient of the frozen weight is ever formed; and the
factors' gradients accumulate straight into buffers that the pack owns. The gradient of a gain needs the
output before it, which is made again in the backward pass: what follows need not keep the layer's output
(rotary positions do not), and a product is cheaper than an activation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from replora.methods.dropout import drop_rows
from replora.methods.linear import frozen_linear, input_gradient

__all__ = ["LayerFactors", "SlotLinear"]


@dataclass(frozen=True)
class LayerFactors:
    """Factors of one site on one layer, with the buffers that their gradients are added to.

    Attributes:
        rows: Output rows `(low, high)` of each of T targets.
        a: `[K, T * R, I]`.
        b: Transposed B of each target, `[K, R, O]`.
        grad_a: Like `a`; None where nothing trains.
        grad_b: Like `b`.
        gains: Factor of each target's outputs, `[K, 1, O]`; none where the update is only added.
        grad_gains: Like `gains`.
    """

    rows: tuple[tuple[int, int], ...]
    a: Tensor
    b: tuple[Tensor, ...]
    grad_a: Tensor | None
    grad_b: tuple[Tensor | None, ...]
    gains: tuple[Tensor, ...] = ()
    grad_gains: tuple[Tensor | None, ...] = ()


@dataclass(frozen=True)
class Binding:
    """What a pack hands to a layer for one step.

    Attributes:
        factors: Of each site on the layer.
        scale: `alpha / rank` of each slot, `[K, 1, 1]`.
        anchor: A scalar that requires a gradient, so that autograd visits the layer even where its
            input needs none; its own gradient is never formed.
    """

    factors: tuple[LayerFactors, ...]
    scale: Tensor
    anchor: Tensor


class SlotLinear(nn.Module):
    """A frozen linear with adapters; until something is bound to it, it is the bare base."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bound: Binding | None = None
        self.dropout: Sequence[torch.Generator] | None = None
        self.rates: Sequence[float] = ()

    def forward(self, x: Tensor) -> Tensor:
        """`[K * B, ..., I]` to `[K * B, ..., O]`."""
        if self.bound is None:
            return frozen_linear(x, self.weight, self.bias)
        rows = x.reshape(self.bound.scale.shape[0], -1, self.in_features)
        y = _LowRankLinear.apply(rows, self._drop(rows), self.bound.anchor, self)
        return y.view(*x.shape[:-1], self.out_features)  # type: ignore[no-any-return]

    def _drop(self, rows: Tensor) -> Tensor | None:
        """LoRA's input dropout with each slot's own random stream, or None where no slot drops."""
        return None if self.dropout is None else drop_rows(rows, self.dropout, self.rates)


class _LowRankLinear(torch.autograd.Function):
    """Rows `[K, M, I]` to `[K, M, O]`; see the module's equation."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dropped: Tensor | None,
        anchor: Tensor,
        layer: SlotLinear,
    ) -> Tensor:
        bound = layer.bound
        assert bound is not None, "an unbound layer is the bare base"
        gained = any(site.gains for site in bound.factors)
        y = frozen_linear(x, layer.weight, None if gained else layer.bias)
        source = x if dropped is None else dropped
        inners = []
        for site in bound.factors:
            inner = _inner(source, site, bound.scale)
            for (low, high), part, b in zip(site.rows, inner.chunk(len(site.b), dim=2), site.b, strict=True):
                y[:, :, low:high].baddbmm_(part, b)
            inners.append(inner)
        _multiply(y, bound.factors)
        if gained and layer.bias is not None:
            y += layer.bias
        trains = any(grad is not None for site in bound.factors for grad in site.grad_gains)
        kept = inners if layer.in_features < _WIDE else []
        ctx.save_for_backward(source, x if trains else None, layer.weight, *kept)
        ctx.bound, ctx.has_dropout, ctx.gained = bound, dropped is not None, gained
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        source, x, weight, *inners = ctx.saved_tensors
        if not inners:
            inners = [_inner(source, site, ctx.bound.scale) for site in ctx.bound.factors]
        wants_x, wants_dropped = ctx.needs_input_grad[:2]
        for site, inner in zip(ctx.bound.factors, inners, strict=True):
            if x is not None:
                _backward_gains(site, inner, x, weight, dy)
        if ctx.gained:
            dy = dy.clone()
            _multiply(dy, ctx.bound.factors)
        dx = input_gradient(dy, weight) if wants_x else None
        ddropped = torch.zeros_like(source) if ctx.has_dropout and wants_dropped else None
        into = ddropped if ctx.has_dropout else dx
        for site, inner in zip(ctx.bound.factors, inners, strict=True):
            d_inner = _backward_up(site, inner, dy).mul_(ctx.bound.scale)
            if into is not None:
                into.baddbmm_(d_inner, site.a)
            if site.grad_a is not None:
                site.grad_a.baddbmm_(d_inner.transpose(1, 2), source)
        return dx, ddropped, None, None


def _inner(source: Tensor, site: LayerFactors, scale: Tensor) -> Tensor:
    """Inner activations of a site's targets, `[K, M, T * R]`."""
    return torch.bmm(source, site.a.transpose(1, 2)).mul_(scale)


def _multiply(y: Tensor, sites: Sequence[LayerFactors]) -> None:
    """Outputs (or their gradients) times the gains, in place."""
    for site in sites:
        for (low, high), gain in zip(site.rows, site.gains, strict=bool(site.gains)):
            y[:, :, low:high] *= gain


def _backward_gains(site: LayerFactors, inner: Tensor, x: Tensor, weight: Tensor, dy: Tensor) -> None:
    """Adds `sum(dy (W x + s B A x))` over the rows to the gains' gradients."""
    parts = zip(site.rows, inner.chunk(len(site.b), 2), site.b, site.grad_gains, strict=bool(site.gains))
    for (low, high), part, b, grad in parts:
        if grad is not None:
            plain = frozen_linear(x, weight[low:high], None).baddbmm_(part, b)
            grad += plain.mul_(dy[:, :, low:high]).sum(1, keepdim=True)


def _backward_up(site: LayerFactors, inner: Tensor, dy: Tensor) -> Tensor:
    """Adds to B's gradients; returns the gradient of the inner activations, `[K, M, T * R]`."""
    d_inner = torch.empty_like(inner)
    count = len(site.b)
    parts = zip(site.rows, site.b, site.grad_b, inner.chunk(count, 2), d_inner.chunk(count, 2), strict=True)
    for (low, high), b, grad_b, part, d_part in parts:
        dy_rows = dy[:, :, low:high]
        torch.bmm(dy_rows, b.transpose(1, 2), out=d_part)
        if grad_b is not None:
            grad_b.baddbmm_(part.transpose(1, 2), dy_rows)
    return d_inner


#: Input features from which the inner activations are made again in the backward pass instead of kept.
#: Measured (docs/log.md): at width 64 that costs a packed step 1 to 3 %, from 384 on nothing that shows.
_WIDE = 256
