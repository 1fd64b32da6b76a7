"""One adapter's tensors inside somebody else's model, and the factors that its layers use.

The tensors are those of this project's own adapter folder. Factors of all layers are made in one go and
dealt out layer by layer; when a layer asks a second time a new forward pass has begun, and they are made
anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from replora.config import LowRankMethod
from replora.methods.adaptation import parts
from replora.methods.bake import BakedTarget
from replora.models.base import Target

__all__ = ["AdapterTensors"]


@dataclass
class _Pass:
    """The factors of one forward pass, by module path, and which layers have had theirs.

    A copy of the model starts without them: they belong to a graph.
    """

    state: tuple[object, ...] = ()
    shares: dict[str, list[BakedTarget]] | None = None

    def __deepcopy__(self, memo: object) -> _Pass:
        return _Pass()

    def __reduce__(self) -> tuple[type[_Pass], tuple[()]]:
        return _Pass, ()


class AdapterTensors(nn.Module):
    """The trainable tensors of one adapter on a model.

    They are in fp32, or fp64 where the model is.

    Args:
        model: The model; it is not made a part of this module.
        targets: What is adapted.
        method: How.
    """

    def __init__(self, model: nn.Module, targets: Sequence[Target], method: LowRankMethod) -> None:
        super().__init__()
        self._built_on = (model, tuple(targets), method)
        self._parts = parts(*self._built_on)
        self._pass = _Pass()
        weight = model.get_submodule(targets[0].module).weight
        assert isinstance(weight, Tensor)
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        for part in self._parts:
            generator = torch.Generator().manual_seed(int(torch.randint(2**31, ()).item()))
            for name, tensor in part.initial(method, generator).items():
                parameter = nn.Parameter(tensor.to(weight.device, dtype))
                self.register_parameter(name.replace(".", "/"), parameter)  # a dot would mean a child

    @property
    def method(self) -> LowRankMethod:
        """How the targets are adapted."""
        return self._built_on[2]

    @property
    def decomposed(self) -> bool:
        """Whether its updates are not only added to the weights."""
        return any(composition is not None for part in self._parts for composition in part.compositions)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors under the names of this project's own folder."""
        return {name.replace("/", "."): parameter for name, parameter in self.named_parameters()}

    def share(self, path: str) -> list[BakedTarget]:
        """The factors of one linear for this forward pass."""
        state = self._state()
        if self._pass.shares is None or state != self._pass.state or path not in self._pass.shares:
            self._pass = _Pass(state, self._make())
        assert self._pass.shares is not None
        return self._pass.shares.pop(path)

    def compute(self, parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Of every site `A [1, L, T, r, I]`, each target's `B [1, L, r, O]`, then each gain `[1, L, O]`."""
        packed = {name: p.unsqueeze(0) for name, p in zip(self.tensors(), parameters, strict=True)}
        device, dtype = parameters[0].device, parameters[0].dtype
        rank = torch.tensor([self.method.rank], device=device)
        scale = torch.tensor([[self.method.alpha / self.method.rank]], device=device, dtype=dtype)
        made: list[Tensor] = []
        for part in self._parts:
            for _, (a, bs), gains in part.make(packed, rank, scale):
                made += [a, *bs, *gains]
        return tuple(made)

    def versions(self) -> tuple[object, ...]:
        """Changes whenever a tensor is replaced or changed in place."""
        return tuple((p.data_ptr(), None if p.is_inference() else p._version) for p in self.parameters())

    def _state(self) -> tuple[object, ...]:
        trains = tuple(parameter.requires_grad for parameter in self.parameters())
        return (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), trains, self.versions())

    def _make(self) -> dict[str, list[BakedTarget]]:
        made = iter(_Make.apply(self, *self.parameters()))
        scale = self.method.alpha / self.method.rank
        shares: dict[str, list[BakedTarget]] = {}
        for part in self._parts:
            for site, composition in zip(part.source.sites, part.compositions, strict=True):
                a = next(made)[0].unbind(0)
                bs = [next(made)[0].transpose(1, 2).unbind(0) for _ in site.targets]
                gains = [next(made)[0].unbind(0) for _ in site.targets] if composition else []
                for layer, module in enumerate(site.modules):
                    for index, (name, rows) in enumerate(zip(site.targets, site.rows, strict=True)):
                        gain = gains[index][layer] if gains else None
                        factors = (a[layer][index], bs[index][layer], scale, gain)
                        shares.setdefault(module, []).append(BakedTarget(name, module, rows, *factors))
        return {module: sorted(share, key=lambda target: target.rows) for module, share in shares.items()}

    def _apply(self, fn: Any, recurse: bool = True) -> AdapterTensors:
        """Norms of the base's weights were taken on the device before."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._parts, self._pass = parts(*self._built_on), _Pass()
        return self


class _Make(torch.autograd.Function):
    """Keeps nothing for the backward pass but makes the factors again, so many passes may share them."""

    @staticmethod
    def forward(ctx: Any, tensors: AdapterTensors, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.tensors, ctx.versions = tensors, tensors.versions()
        return tuple(factor.clone() for factor in tensors.compute(parameters))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.tensors.versions() != ctx.versions:
            raise RuntimeError("an adapter's tensors were changed between the forward and the backward pass")
        leaves = [p.detach().requires_grad_(p.requires_grad) for p in ctx.tensors.parameters()]
        with torch.enable_grad():
            made = ctx.tensors.compute(leaves)
        used = [(factor, grad) for factor, grad in zip(made, grads, strict=True) if factor.requires_grad]
        trained = [leaf for leaf in leaves if leaf.requires_grad]
        outputs, weights = zip(*used, strict=True)
        found = iter(torch.autograd.grad(outputs, trained, weights, allow_unused=True))
        return (None, *(next(found) if leaf.requires_grad else None for leaf in leaves))
