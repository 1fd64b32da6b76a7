"""What trains in full beside a method: VL-BART's biases and visual embedding, one set a slot.

A bias is added where the base adds its own, so a slot needs only the difference, which is exactly zero
at the start. A module that trains as a whole runs once for each slot: it is small.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from replora.config import MethodConfig
from replora.methods.contract import OwnTree
from replora.methods.layout import Shapes
from replora.methods.structure import Seam, copy_structure
from replora.models.base import Backbone, Beside
from replora.tasks.base import Batch

__all__ = ["PREFIX", "BesideAdaptation"]

#: Of the names of what trains beside a method.
PREFIX = "beside."


class BesideAdaptation:
    """A method and what trains beside it on one private module tree.

    Args:
        inner: The method.
        backbone: The frozen base, with the weights that training starts from.
        beside: Which of them train.
    """

    def __init__(self, inner: OwnTree, backbone: Backbone, beside: Beside) -> None:
        self._inner, self._start = inner, {}
        self._shifts: dict[str, _Shift] = {}
        self._modules: dict[str, _SlotModule] = {}
        self._seam = Seam()
        for path in beside.biases:
            module = inner.model.get_submodule(path)
            self._start[f"{path}.bias"] = backbone.whole(backbone.model.get_parameter(f"{path}.bias"))
            self._shifts[path] = _Shift()
            # A bottleneck adapter reads what its base gives: the shift belongs before it.
            getattr(module, "base", module).register_forward_hook(self._shifts[path])
        for path in beside.modules:
            found = backbone.model.get_submodule(path)
            self._start |= {f"{path}.{name}": backbone.whole(each) for name, each in found.named_parameters()}
            self._modules[path] = _SlotModule(copy_structure(found))  # the private one has frozen linears
            parent, _, name = path.rpartition(".")
            setattr(inner.model.get_submodule(parent), name, self._modules[path])

    def shapes(self, method: MethodConfig) -> Shapes:
        """Those of the method, and `beside.<name of the parameter>`."""
        own = {PREFIX + name: tuple(each.shape) for name, each in self._start.items()}
        return {**self._inner.shapes(method), **own}

    def initial(self, method: MethodConfig, generator: torch.Generator) -> dict[str, Tensor]:
        """The method's start, and the base's own numbers."""
        own = {PREFIX + name: each.cpu().double() for name, each in self._start.items()}
        return {**self._inner.initial(method, generator), **own}

    def prepare(self, parameters: Mapping[str, Tensor], methods: Sequence[MethodConfig]) -> None:
        """Binds the method, the differences `[K, O]` of biases, and each slot's own modules."""
        inner = {name: each for name, each in parameters.items() if not name.startswith(PREFIX)}
        self._inner.prepare(inner, methods)
        self._seam = Seam()
        for path, shift in self._shifts.items():
            base = self._start[f"{path}.bias"]
            shift.by = self._seam.cut((parameters[f"{PREFIX}{path}.bias"] - base).to(base.dtype))
        for path, module in self._modules.items():
            names = [name for name, _ in module.module.named_parameters()]
            own = {n: self._cut(parameters, f"{path}.{n}") for n in names}
            module.slots = [{n: each[slot] for n, each in own.items()} for slot in range(len(methods))]

    def _cut(self, parameters: Mapping[str, Tensor], name: str) -> Tensor:
        return self._seam.cut(parameters[PREFIX + name].to(self._start[name].dtype))

    def features(self, batch: Batch) -> Tensor:
        """As the method's."""
        return self._inner.features(batch)

    def settle(self) -> None:
        """Carries gradients on into the parameters."""
        self._inner.settle()
        self._seam.settle()

    def drop_with(self, generators: Sequence[torch.Generator] | None) -> None:
        """As the method's: nothing beside it drops out."""
        self._inner.drop_with(generators)


class _Shift:
    """A forward hook that adds each slot's own difference `[K, O]` to outputs `[K * B, ..., O]`."""

    by: Tensor

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        slots, width = self.by.shape
        return (output.reshape(slots, -1, width) + self.by.unsqueeze(1)).view(output.shape)


class _SlotModule(nn.Module):
    """A module with weights of each slot, for inputs `[K * B, ...]`."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._outside = (module,)  # of the tree: its own weights are never read, so nobody need gather them
        self.slots: list[dict[str, Tensor]] = []

    @property
    def module(self) -> nn.Module:
        """What runs; its parameters say what a slot has."""
        return self._outside[0]

    def forward(self, *inputs: Tensor) -> Tensor:
        parts = zip(*(each.chunk(len(self.slots)) for each in inputs), strict=True)
        found = [functional_call(self.module, own, part) for own, part in zip(self.slots, parts, strict=True)]
        return torch.cat(found)
