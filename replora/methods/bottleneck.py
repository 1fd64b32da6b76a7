r"""Bottleneck adapters: K small MLPs after a frozen linear (series) or beside it (parallel).

    y = W x + b
    series       y + s (U act(D y + d) + u)      Houlsby et al. [1]
    parallel     y + s (U act(D x + d) + u)      He et al. [2]

`D [m, .]`, `U [O, m]`, biases only where asked for; U and u start at zero, so training starts at the
base to the bit (*choice*; LLM-Adapters' code draws both from N(0, 0.02^2), reported). The adapter of a
target sits on its linear: on `down` it is after, or beside, the last linear of the MLP; on `output`,
that of the attention. LLM-Adapters places its parallel ones likewise (reported), He et al. beside a
whole sub-layer.

Padding: a hidden unit beyond a slot's own width has D = U = 0, so it is `act(0) = 0`, and the gradient
of each of the two is a product with the other.

References:
    [1] Houlsby et al., "Parameter-Efficient Transfer Learning for NLP", ICML 2019.
    [2] He et al., "Towards a Unified View of Parameter-Efficient Transfer Learning", ICLR 2022.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from replora.config import AdapterMethod, MethodConfig
from replora.methods.dropout import drop_rows
from replora.methods.generator import ACTIVATIONS
from replora.methods.layout import Shapes
from replora.methods.linear import FrozenLinear
from replora.methods.sites import Group, Site, group_targets, select_targets
from replora.methods.structure import Seam, copy_structure, packed_features, replace_linears
from replora.models.base import Backbone
from replora.tasks.base import Batch

__all__ = ["BottleneckAdaptation"]


@dataclass(frozen=True)
class _Bottleneck:
    """The adapters of one target in one layer.

    Attributes:
        rows: Output rows `(low, high)` of the target.
        down: Transposed D, `[K, I, M]`.
        up: Transposed U times the scale, `[K, M, O]`.
        down_bias: `[K, 1, M]`, or None.
        up_bias: u times the scale, `[K, 1, O]`, or None.
    """

    rows: tuple[int, int]
    down: Tensor
    up: Tensor
    down_bias: Tensor | None = None
    up_bias: Tensor | None = None

    def add(self, source: Tensor, part: Tensor, act: Callable[[Tensor], Tensor]) -> Tensor:
        """The target's outputs `[K, N, O]` and what the adapters make of `source [K, N, I]`."""
        if self.down_bias is None or self.up_bias is None:
            return torch.baddbmm(part, act(torch.bmm(source, self.down)), self.up)
        hidden = act(torch.baddbmm(self.down_bias, source, self.down))
        return torch.baddbmm(part + self.up_bias, hidden, self.up)


class BottleneckLinear(nn.Module):
    """A frozen linear with adapters; until something is bound to it, it is the bare base."""

    def __init__(self, linear: nn.Linear, method: AdapterMethod) -> None:
        super().__init__()
        self.base = FrozenLinear(linear)
        self.bound: tuple[_Bottleneck, ...] = ()
        self.dropout: Sequence[torch.Generator] | None = None
        self.rates: Sequence[float] = ()
        self._in_series = method.form == "series"
        self._activation = ACTIVATIONS[method.activation]

    def forward(self, x: Tensor) -> Tensor:
        """`[K * B, ..., I]` to `[K * B, ..., O]`."""
        y: Tensor = self.base(x)
        if not self.bound:
            return y
        slots = self.bound[0].down.shape[0]
        inputs, outputs = x.reshape(slots, -1, x.shape[-1]), y.view(slots, -1, y.shape[-1])
        pieces, end = [], 0
        for adapter in self.bound:
            low, high = adapter.rows
            part = outputs[:, :, low:high]
            source = self._drop(part if self._in_series else inputs)
            pieces += [outputs[:, :, end:low], adapter.add(source, part, self._activation)]
            end = high
        pieces.append(outputs[:, :, end:])
        pieces = [piece for piece in pieces if piece.shape[2]]
        return (pieces[0] if len(pieces) == 1 else torch.cat(pieces, 2)).view(y.shape)

    def _drop(self, source: Tensor) -> Tensor:
        return source if self.dropout is None else drop_rows(source, self.dropout, self.rates)


class BottleneckAdaptation:
    """Every target's linear becomes a `BottleneckLinear`; blocks of equal shapes share their tensors."""

    def __init__(self, backbone: Backbone, method: AdapterMethod) -> None:
        self._backbone = backbone
        self.model = copy_structure(backbone.model)
        self._dtype = next(backbone.model.parameters()).dtype
        self._form = method.form
        self._groups = group_targets(select_targets(backbone.targets, method.targets))
        modules = [module for group in self._groups for site in group.sites for module in site.modules]
        self._layers = replace_linears(self.model, modules, lambda linear: BottleneckLinear(linear, method))
        self._rates: tuple[float, ...] = ()
        self._seam = Seam()

    def shapes(self, method: MethodConfig) -> Shapes:
        """Per target `down [L, in, m]` and `up [L, m, out]`, and with biases `[L, m]` and `[L, out]`."""
        adapter = _adapter(method)
        shapes: dict[str, tuple[int, ...]] = {}
        for group, site, index in self._targets():
            name, width = f"{group.name}{site.targets[index]}", site.outputs[index]
            blocks, read = len(group.blocks), width if self._form == "series" else site.inputs
            shapes[f"{name}.down"] = (blocks, read, adapter.bottleneck)
            shapes[f"{name}.up"] = (blocks, adapter.bottleneck, width)
            if adapter.bias:
                shapes[f"{name}.down_bias"] = (blocks, adapter.bottleneck)
                shapes[f"{name}.up_bias"] = (blocks, width)
        return shapes

    def initial(self, method: MethodConfig, generator: torch.Generator) -> dict[str, Tensor]:
        """D uniform in `+-1 / sqrt(in)`, as a linear layer of torch; everything else zero."""
        tensors = {}
        for name, shape in self.shapes(method).items():
            tensors[name] = torch.zeros(shape, dtype=torch.float64)
            if name.endswith(".down"):
                bound = 1 / math.sqrt(shape[1])
                tensors[name].uniform_(-bound, bound, generator=generator)
        return tensors

    def prepare(self, parameters: Mapping[str, Tensor], methods: Sequence[MethodConfig]) -> None:
        """Binds each layer's share of the parameters to it."""
        adapters = [_adapter(method) for method in methods]
        self._rates = tuple(adapter.dropout for adapter in adapters)
        self._seam = Seam()
        bound: dict[str, list[_Bottleneck]] = {path: [] for path in self._layers}
        for group, site, index in self._targets():
            name = f"{group.name}{site.targets[index]}"
            tensors = [parameters[f"{name}.down"], _scaled(parameters[f"{name}.up"], adapters)]
            if f"{name}.up_bias" in parameters:
                tensors.append(parameters[f"{name}.down_bias"].unsqueeze(2))
                tensors.append(_scaled(parameters[f"{name}.up_bias"].unsqueeze(2), adapters))
            for module, *own in zip(site.modules, *map(self._shares, tensors), strict=True):
                bound[module].append(_Bottleneck(site.rows[index], *own))
        for path, layer in self._layers.items():
            layer.bound = tuple(bound[path])

    def features(self, batch: Batch) -> Tensor:
        """One pass of all slots, `[K, B, ...]` to `[K, B, ...]`."""
        return packed_features(self._backbone, self.model, batch)

    def settle(self) -> None:
        """Carries the gradients on through scales and types, once per step."""
        self._seam.settle()

    def drop_with(self, generators: Sequence[torch.Generator] | None) -> None:
        """Each slot's own stream; a pack in which no slot drops out does no work for it."""
        active = generators if generators is not None and any(self._rates) else None
        for layer in self._layers.values():
            layer.dropout, layer.rates = active, self._rates

    def _targets(self) -> Iterator[tuple[Group, Site, int]]:
        """Every target: its group, its site and its place in the site, in row order."""
        for group in self._groups:
            for site in group.sites:
                yield from ((group, site, index) for index in range(len(site.targets)))

    def _shares(self, tensor: Tensor) -> Sequence[Tensor]:
        """A tensor `[K, L, ...]` in the base's type as L tensors `[K, ...]`."""
        return [self._seam.cut(share) for share in tensor.to(self._dtype).unbind(1)]


def _scaled(tensor: Tensor, adapters: Sequence[AdapterMethod]) -> Tensor:
    """A tensor `[K, ...]` times each slot's scale."""
    if all(adapter.scale == 1 for adapter in adapters):
        return tensor
    return tensor * tensor.new_tensor([adapter.scale for adapter in adapters]).view(-1, 1, 1, 1)


def _adapter(method: MethodConfig) -> AdapterMethod:
    assert isinstance(method, AdapterMethod), f"a pack of adapters got the method {method.name}"
    return method
