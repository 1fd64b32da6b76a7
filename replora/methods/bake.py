"""A trained adapter without its generators: plain A and B per target, and the merged model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from replora.config import AdapterMethod, FullMethod, LowRankMethod, PrefixMethod
from replora.errors import AdapterError
from replora.methods.adaptation import adapt, parts
from replora.methods.beside import PREFIX
from replora.methods.factors import Factors
from replora.methods.folder import SavedAdapter, check_tensors
from replora.methods.layout import Layout, cover
from replora.methods.sites import Site
from replora.methods.structure import copy_structure
from replora.models.base import Backbone

__all__ = ["BakedTarget", "bake", "head", "merge"]


@dataclass(frozen=True)
class BakedTarget:
    """The plain low-rank update of one target: `W[rows] = gain * (W[rows] + scale * b @ a)`.

    Attributes:
        name: Target name.
        module: Dotted path of its linear.
        rows: Output rows `(low, high)` of the linear.
        a: `[r, I]`.
        b: `[O, r]`.
        scale: `alpha / r`.
        gain: Of each output `[O]`; None where the update is only added.
    """

    name: str
    module: str
    rows: tuple[int, int]
    a: Tensor
    b: Tensor
    scale: float
    gain: Tensor | None = None

    def merge_into(self, weight: Tensor) -> None:
        """Changes the rows of a whole weight `[O', I]` in place."""
        rows = weight[self.rows[0] : self.rows[1]]
        rows += (self.scale * self.b @ self.a).to(weight)
        if self.gain is not None:
            rows *= self.gain.to(weight).unsqueeze(1)


@torch.no_grad()
def bake(adapter: SavedAdapter, backbone: Backbone) -> list[BakedTarget]:
    """The factors of a low-rank adapter, exactly as the layers used them; none for other methods.

    Raises:
        AdapterError: If the adapter was trained on another base, or its tensors are not the method's.
    """
    _check(adapter, backbone)
    method = adapter.config.method
    if not isinstance(method, LowRankMethod):
        return []
    baked: list[BakedTarget] = []
    scale = method.alpha / method.rank
    for part in parts(backbone.model, backbone.targets, method):
        layout = Layout(part.shapes(cover([method])))
        matrix = torch.zeros(1, layout.width, dtype=next(iter(adapter.tensors.values())).dtype)
        layout.write(matrix[0], adapter.tensors)
        exact = torch.tensor([[scale]], dtype=matrix.dtype)
        for site, factors, gains in part.make(layout.views(matrix), torch.tensor([method.rank]), exact):
            for layer in range(len(site.modules)):
                baked += _baked(site, layer, (factors, gains), method)
    return baked


def _baked(
    site: Site, layer: int, made: tuple[Factors, tuple[Tensor, ...]], method: LowRankMethod
) -> Iterator[BakedTarget]:
    """A site's targets in one layer, in the slot's own rank."""
    (a, bs), gains = made
    for index, (target, rows) in enumerate(zip(site.targets, site.rows, strict=True)):
        yield BakedTarget(
            name=target,
            module=site.modules[layer],
            rows=rows,
            a=a[0, layer, index, : method.rank].clone(),
            b=bs[index][0, layer, : method.rank].T.contiguous(),
            scale=method.alpha / method.rank,
            gain=gains[index][0, layer].clone() if gains else None,
        )


@torch.no_grad()
def merge(adapter: SavedAdapter, backbone: Backbone) -> nn.Module:
    """A copy of the base with the adapter inside its weights; inference costs what the base costs.

    Only the changed weights are new memory; the rest is shared with the backbone.

    Raises:
        AdapterError: If the adapter was trained on another base, or is no change of weights.
    """
    method = adapter.config.method
    if isinstance(method, AdapterMethod | PrefixMethod):
        what = "a nonlinear layer" if isinstance(method, AdapterMethod) else "further keys and values"
        raise AdapterError(
            f"the method {method.name} adds {what} to the model, which no weights of the base can hold.\n"
            "  Use the adapter's own folder (kind replora): eval and train read it."
        )
    model = copy_structure(backbone.model)
    if isinstance(adapter.config.method, FullMethod):
        _check(adapter, backbone)
        _replace(model, {n[5:]: t for n, t in adapter.tensors.items() if n.startswith("base.")})
        return model
    weights: dict[str, Tensor] = {}
    for target in bake(adapter, backbone):
        name = f"{target.module}.weight"
        target.merge_into(weights.setdefault(name, model.get_parameter(name).detach().clone()))
    weights |= {n.removeprefix(PREFIX): t for n, t in adapter.tensors.items() if n.startswith(PREFIX)}
    _replace(model, weights)
    return model


def _replace(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Puts weights in, each under every name that its parameter has (a head may be the embedding)."""
    places: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        places.setdefault(id(parameter), []).append(name)
    for name, weight in weights.items():
        old = model.get_parameter(name)
        parameter = nn.Parameter(weight.to(old), requires_grad=False)
        for place in places[id(old)]:
            path, _, leaf = place.rpartition(".")
            setattr(model.get_submodule(path), leaf, parameter)


def _check(adapter: SavedAdapter, backbone: Backbone) -> None:
    """Refuses adapters of another base, and tensors that are not exactly those of the method and its head."""
    if adapter.backbone_fingerprint != backbone.fingerprint:
        raise AdapterError(
            f"the adapter was trained on the base {adapter.backbone_fingerprint}, "
            f"but {backbone.name} is {backbone.fingerprint}: give the same weights"
        )
    wanted = dict(adapt(backbone, adapter.config.method).shapes(adapter.config.method))
    if adapter.head_width:
        wanted |= {"head.weight": (adapter.head_width, backbone.width), "head.bias": (adapter.head_width,)}
    check_tensors(wanted, adapter.tensors)


def head(adapter: SavedAdapter) -> tuple[Tensor, Tensor] | None:
    """Weight `[C, D]` and bias `[C]` of the task head, or None where the task has none."""
    if not adapter.head_width:
        return None
    return adapter.tensors["head.weight"], adapter.tensors["head.bias"]
