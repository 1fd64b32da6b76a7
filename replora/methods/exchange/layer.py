"""The layer that PEFT puts in a linear's place: any number of adapters of ours on one frozen weight."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from replora.methods.bake import BakedTarget
from replora.methods.exchange.tensors import AdapterTensors

__all__ = ["ReploraLayer"]


class ReploraLayer(nn.Module, BaseTunerLayer):
    """A linear of the user's model with any number of adapters: `y = gain (W x + s B A x) + bias`."""

    adapter_layer_names = ("replora_dropout",)  # says which adapters are here; their tensors are the tuner's
    other_param_names = ()

    def __init__(self, base_layer: nn.Linear, path: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = base_layer.in_features, base_layer.out_features
        self.replora_dropout = nn.ModuleDict()
        self.tensors: dict[str, AdapterTensors] = {}
        self.merged_adapters: list[str] = []
        self._path, self._has_bias = path, isinstance(base_layer.bias, Tensor)
        self._original: Tensor | None = None

    def add(self, name: str, tensors: AdapterTensors) -> None:
        """Lets an adapter act on this layer once it is active."""
        self.tensors[name] = tensors
        self.replora_dropout[name] = nn.Dropout(tensors.method.dropout)

    def delete_adapter(self, adapter_name: str) -> None:
        """Forgets an adapter."""
        self.tensors.pop(adapter_name, None)
        super().delete_adapter(adapter_name)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`[..., I]` to `[..., O]`."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        y: Tensor = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return y
        for name in self.active_adapters:
            if name in self.tensors:
                y = self._adapted(name, x, y)
        return y

    def _adapted(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        source = self.replora_dropout[name](x)
        pieces, position = [], 0
        for target in self.tensors[name].share(self._path):
            low, high = target.rows
            pieces += [y[..., position:low], self._piece(target, source, y[..., low:high])]
            position = high
        pieces.append(y[..., position:])
        kept = [piece for piece in pieces if piece.shape[-1]]
        return kept[0] if len(kept) == 1 else torch.cat(kept, dim=-1)

    def _piece(self, target: BakedTarget, source: Tensor, y: Tensor) -> Tensor:
        a, b = target.a.to(source.dtype), target.b.to(source.dtype)
        y = y + target.scale * (source @ a.T @ b.T).to(y.dtype)
        if target.gain is None:
            return y
        gain = target.gain.to(y.dtype)
        if not self._has_bias:
            return y * gain
        bias = self.base_layer.bias[target.rows[0] : target.rows[1]]
        return (y - bias) * gain + bias

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Puts adapters into the weight; the weight before is kept, so that `unmerge` is exact to the bit.

        Raises:
            ValueError: With `safe_merge`, if the merged weight is not finite; if a weight-decomposed adapter
                comes on top of a merged one.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.tensors]
        if self.merged and any(self.tensors[name].decomposed for name in names):
            raise ValueError(f"{', '.join(names)}: needs the norms of the base's weights; unmerge first")
        weight = self.base_layer.weight.data
        merged = weight.clone()
        for share in [self.tensors[name].share(self._path) for name in names]:
            for target in share:
                target.merge_into(merged)
        if safe_merge and not torch.isfinite(merged).all():
            raise ValueError(f"merging into {self._path} would give weights that are not finite")
        self._original = weight if self._original is None else self._original
        self.base_layer.weight.data = merged
        self.merged_adapters += names

    def unmerge(self) -> None:
        """Takes all adapters out of the weight again."""
        if self._original is not None:
            self.base_layer.weight.data, self._original = self._original, None
        self.merged_adapters.clear()
