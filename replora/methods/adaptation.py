"""A method bound to a backbone: what a slot trains, and how K slots run forward on one base.

An adaptation owns a private copy of the backbone's module tree on the very same weights, so several
packs with different methods can share one frozen base.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from replora.config import (
    AdapterMethod,
    FullMethod,
    GeneratedMethod,
    HoraMethod,
    LinearProbeMethod,
    LowRankMethod,
    MethodConfig,
    PrefixMethod,
)
from replora.methods.beside import BesideAdaptation
from replora.methods.bottleneck import BottleneckAdaptation
from replora.methods.composition import Decomposition, decomposition
from replora.methods.contract import Adaptation, OwnTree
from replora.methods.factors import DirectFactors, Factors, FactorSource, GeneratedFactors
from replora.methods.joint import JointFactors
from replora.methods.layer import Binding, LayerFactors, SlotLinear
from replora.methods.layout import Shapes
from replora.methods.linear import freeze_linears
from replora.methods.prefix import PrefixAdaptation
from replora.methods.sites import Group, Site, group_targets, select_targets
from replora.methods.structure import carry_on, copy_structure, packed_features, replace_linears
from replora.models.base import Backbone, Target, held_whole
from replora.tasks.base import Batch

__all__ = ["Part", "adapt", "parts"]


def adapt(backbone: Backbone, method: MethodConfig) -> Adaptation:
    """Binds a method to a backbone; the method's structure (not its ranks or rates) is fixed by it."""
    if isinstance(method, FullMethod):
        return FullAdaptation(backbone)
    inner = _inner(backbone, method)
    return inner if backbone.beside is None else BesideAdaptation(inner, backbone, backbone.beside)


def _inner(backbone: Backbone, method: MethodConfig) -> OwnTree:
    if isinstance(method, LinearProbeMethod):
        return ProbeAdaptation(backbone)
    if isinstance(method, AdapterMethod):
        return BottleneckAdaptation(backbone, method)
    if isinstance(method, PrefixMethod):
        return PrefixAdaptation(backbone, method)
    return LowRankAdaptation(backbone, _low_rank(method))


@dataclass(frozen=True)
class Part:
    """Some sites of one group: where their factors come from and how the updates enter the weights.

    Attributes:
        source: Makes the factors of its sites.
        compositions: Of each site; None where the update is added.
    """

    source: FactorSource
    compositions: tuple[Decomposition | None, ...]

    def shapes(self, method: LowRankMethod) -> Shapes:
        """Shapes of one slot's parameters."""
        shapes = dict(self.source.shapes(method))
        for composition in self.compositions:
            shapes |= composition.shapes() if composition else {}
        return shapes

    def initial(self, method: LowRankMethod, generator: torch.Generator) -> dict[str, Tensor]:
        """One slot's parameters at the start (fp64)."""
        tensors = self.source.initial(method, generator)
        for composition in self.compositions:
            tensors |= composition.initial(method) if composition else {}
        return tensors

    def make(
        self, parameters: Mapping[str, Tensor], ranks: Tensor, scale: Tensor
    ) -> Iterator[tuple[Site, Factors, tuple[Tensor, ...]]]:
        """Each site with its factors and its targets' gains `[K, L, O]` (none where additive)."""
        made = self.source.make(parameters, ranks)
        for site, factors, composition in zip(self.source.sites, made, self.compositions, strict=True):
            gains = composition.gains(parameters, factors, scale) if composition else ()
            yield site, factors, gains


def parts(
    model: nn.Module,
    targets: Sequence[Target],
    method: LowRankMethod,
    whole: Callable[[nn.Parameter], Tensor] = held_whole,
) -> list[Part]:
    """The parts of a low-rank method on a model with these targets, group by group."""

    def weight(path: str) -> Tensor:
        return whole(model.get_parameter(f"{path}.weight"))

    found: list[Part] = []
    for group in group_targets(select_targets(targets, method.targets)):
        composed = [decomposition(group, site, weight, method) for site in group.sites]
        found.append(Part(factor_source(group, method), tuple(composed)))
    if isinstance(method, GeneratedMethod):
        for group in group_targets(select_targets(targets, method.plain_targets)):
            found.append(Part(DirectFactors(group, group.sites, "plain."), (None,) * len(group.sites)))
    return found


def factor_source(group: Group, method: LowRankMethod) -> FactorSource:
    """Where the factors of a group's targets come from."""
    if isinstance(method, HoraMethod):
        return JointFactors(group, group.sites, method)
    if isinstance(method, GeneratedMethod):
        return GeneratedFactors(group, group.sites, method)
    return DirectFactors(group, group.sites, "")


class LowRankAdaptation:
    """Factors x composition: every adapted linear becomes a `SlotLinear`.

    Factors are made once per step. The layers see them cut off from the generators' graph, so any
    number of micro-batches adds to `[K, L, ...]` gradient buffers, and the generators run backward
    once (`settle`).
    """

    def __init__(self, backbone: Backbone, method: LowRankMethod) -> None:
        self._backbone = backbone
        self.model = copy_structure(backbone.model)
        self._dtype = next(backbone.model.parameters()).dtype
        self._parts = parts(backbone.model, backbone.targets, method, backbone.whole)
        sites = [site for part in self._parts for site in part.source.sites]
        modules = [module for site in sites for module in site.modules]
        self._layers = replace_linears(self.model, modules, SlotLinear)
        self._rates: tuple[float, ...] = ()
        self._made: list[Tensor] = []
        self._grads: list[Tensor] = []

    def shapes(self, method: MethodConfig) -> Shapes:
        """Shapes of all parts."""
        shapes: dict[str, tuple[int, ...]] = {}
        for part in self._parts:
            shapes.update(part.shapes(_low_rank(method)))
        return shapes

    def initial(self, method: MethodConfig, generator: torch.Generator) -> dict[str, Tensor]:
        """Start of all parts, drawn in a fixed order from one generator."""
        tensors: dict[str, Tensor] = {}
        for part in self._parts:
            tensors.update(part.initial(_low_rank(method), generator))
        return tensors

    def prepare(self, parameters: Mapping[str, Tensor], methods: Sequence[MethodConfig]) -> None:
        """Makes all factors and binds each block's share to its layer."""
        low_rank = [_low_rank(method) for method in methods]
        device = next(iter(parameters.values())).device
        ranks = torch.tensor([method.rank for method in low_rank], device=device)
        scales = [method.alpha / method.rank for method in low_rank]
        scale = torch.tensor(scales, dtype=self._dtype, device=device)
        self._rates = tuple(method.dropout for method in low_rank)
        self._made, self._grads = [], []
        bound: dict[str, list[LayerFactors]] = {path: [] for path in self._layers}
        exact = torch.tensor(scales, dtype=next(iter(parameters.values())).dtype, device=device)
        for part in self._parts:
            for site, factors, gains in part.make(parameters, ranks, exact.view(-1, 1)):
                for module, share in zip(site.modules, self._per_layer(site, factors, gains), strict=True):
                    bound[module].append(share)
        anchor = torch.zeros((), device=device, requires_grad=True)
        for path, layer in self._layers.items():
            layer.bound = Binding(tuple(bound[path]), scale.view(-1, 1, 1), anchor)

    def _per_layer(self, site: Site, factors: Factors, gains: tuple[Tensor, ...]) -> Iterator[LayerFactors]:
        """Cuts a site's factors into its layers, each with its part of the gradient buffers."""
        a, grad_a = self._cut(factors[0])
        bs = [self._cut(b) for b in factors[1]]
        gs = [self._cut(gain.unsqueeze(2)) for gain in gains]
        for layer in range(len(site.modules)):
            yield LayerFactors(
                rows=site.rows,
                a=a[layer],
                b=tuple(b[layer] for b, _ in bs),
                grad_a=grad_a[layer],
                grad_b=tuple(grad[layer] for _, grad in bs),
                gains=tuple(gain[layer] for gain, _ in gs),
                grad_gains=tuple(grad[layer] for _, grad in gs),
            )

    def _cut(self, factor: Tensor) -> tuple[list[Tensor], list[Tensor | None]]:
        """A factor `[K, L, ..., R, X]` as L tensors `[K, ... * R, X]`, and likewise its gradient buffer."""
        factor = factor.to(self._dtype)
        shares = [share.flatten(1, -2) for share in factor.detach().unbind(1)]
        if not factor.requires_grad:
            return shares, [None] * len(shares)
        grads = torch.zeros_like(factor, memory_format=torch.contiguous_format)
        self._made.append(factor)
        self._grads.append(grads)
        return shares, [grad.flatten(1, -2) for grad in grads.unbind(1)]

    def features(self, batch: Batch) -> Tensor:
        """Folds slots into the batch, runs the base once, unfolds: `[K, B, ...]` to `[K, B, ...]`."""
        return packed_features(self._backbone, self.model, batch)

    def settle(self) -> None:
        """Runs the generators backward, once per step."""
        if self._made:
            carry_on(self._made, self._grads)
        self._made, self._grads = [], []

    def drop_with(self, generators: Sequence[torch.Generator] | None) -> None:
        """Each slot's own stream; a pack in which no slot drops out does no work for it."""
        active = generators if generators is not None and any(self._rates) else None
        for layer in self._layers.values():
            layer.dropout, layer.rates = active, self._rates


class ProbeAdaptation:
    """Linear probe: nothing but the head trains, and the base runs without a graph."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self.model = copy_structure(backbone.model)
        freeze_linears(self.model)

    def shapes(self, method: MethodConfig) -> Shapes:
        """No parameters beside the head."""
        return {}

    def initial(self, method: MethodConfig, generator: torch.Generator) -> dict[str, Tensor]:
        """No parameters beside the head."""
        return {}

    def prepare(self, parameters: Mapping[str, Tensor], methods: Sequence[MethodConfig]) -> None:
        """Nothing to prepare."""

    @torch.no_grad()
    def features(self, batch: Batch) -> Tensor:
        """The base's own features, `[K, B, D]`."""
        return packed_features(self._backbone, self.model, batch)

    def settle(self) -> None:
        """Nothing to settle."""

    def drop_with(self, generators: Sequence[torch.Generator] | None) -> None:
        """A probe has no dropout."""


class FullAdaptation:
    """Full fine-tuning: a slot's parameters are all weights of the base.

    Slots run one after the other: there is no shared base, so a pack saves nothing here, but any mix
    of trials may still sit in one sweep.
    """

    def __init__(self, backbone: Backbone) -> None:
        self._call = _FeatureCall(backbone, copy_structure(backbone.model))
        self._slots: list[dict[str, Tensor]] = []

    def shapes(self, method: MethodConfig) -> Shapes:
        """Every weight of the base."""
        return {f"base.{name}": tuple(p.shape) for name, p in self._call.model.named_parameters()}

    def initial(self, method: MethodConfig, generator: torch.Generator) -> dict[str, Tensor]:
        """The pre-trained weights."""
        return {f"base.{name}": p.detach() for name, p in self._call.model.named_parameters()}

    def prepare(self, parameters: Mapping[str, Tensor], methods: Sequence[MethodConfig]) -> None:
        """Deals the base's weights `[K, *shape]` out to the slots."""
        dtype = next(self._call.parameters()).dtype
        shares = {
            name.replace("base.", "model.", 1): tensor.to(dtype).unbind(0)
            for name, tensor in parameters.items()
            if name.startswith("base.")
        }
        self._slots = [{name: s[slot] for name, s in shares.items()} for slot in range(len(methods))]

    def features(self, batch: Batch) -> Tensor:
        """Each slot's own model on its own examples, `[K, B, D]`."""
        outputs = []
        for slot, weights in enumerate(self._slots):
            examples = {name: tensor[slot] for name, tensor in batch.items()}
            outputs.append(functional_call(self._call, weights, (examples,)))
        return torch.stack(outputs)

    def settle(self) -> None:
        """Parameters are used directly; their gradients are already there."""

    def drop_with(self, generators: Sequence[torch.Generator] | None) -> None:
        """The base's own dropout stays off."""


class _FeatureCall(nn.Module):
    """A backbone's features as a module, so that its weights can be passed in."""

    def __init__(self, backbone: Backbone, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._backbone = backbone

    def forward(self, batch: Batch) -> Tensor:
        return self._backbone.features(self.model, batch)


def _low_rank(method: MethodConfig) -> LowRankMethod:
    assert isinstance(method, LowRankMethod), f"a low-rank pack got the method {method.name}"
    return method
