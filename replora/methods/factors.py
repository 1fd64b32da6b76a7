r"""Where the factors A and B of a low-rank update come from.

A factor source turns a pack's parameters into factors, all layers of a group at once. It runs once
per optimizer step: the factors do not depend on the input. Shape letters: K slot, L block of a
group, T target of a site, R rank, H hidden width, I in, O out.

Padding: a slot of rank r < R or width h < H has zeros beyond its own corner. For direct factors the
padded rows of A and B are zero, and each one's gradient is a product with the other, hence zero.
For generated factors padded hidden units are `act(0) = 0` and their heads zero, so the same holds;
padded rank columns are not (`act(bias) != 0`), so the hidden layer is masked by rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from replora.config import GeneratedMethod, LowRankMethod
from replora.methods.generator import HiddenLayer
from replora.methods.layout import Shapes
from replora.methods.sites import Group, Site

__all__ = ["DirectFactors", "FactorSource", "Factors", "GeneratedFactors"]

#: Of one site: A `[K, L, T, R, I]` and, for each target, B transposed `[K, L, R, O]`.
Factors = tuple[Tensor, tuple[Tensor, ...]]


class FactorSource(Protocol):
    """Makes the factors of some sites of one group from a slot's parameters."""

    sites: tuple[Site, ...]

    def shapes(self, method: LowRankMethod) -> Shapes:
        """Shapes of one slot's parameters."""
        ...

    def initial(self, method: LowRankMethod, generator: torch.Generator) -> dict[str, Tensor]:
        """One slot's parameters at the start (fp64), for which the update is exactly zero."""
        ...

    def make(self, parameters: Mapping[str, Tensor], ranks: Tensor) -> list[Factors]:
        """Factors of each site; `ranks [K]` are the slots' own ranks."""
        ...


class DirectFactors:
    """LoRA's factors: A and B are the parameters themselves [1].

    A starts uniform in `+-1 / sqrt(in)` (Kaiming with a = sqrt(5), as the authors' code), B at zero.

    References:
        [1] Hu et al., "LoRA", ICLR 2022.
    """

    def __init__(self, group: Group, sites: Sequence[Site], prefix: str) -> None:
        self.sites = tuple(sites)
        self._blocks = len(group.blocks)
        self._prefix = prefix + group.name

    def shapes(self, method: LowRankMethod) -> Shapes:
        """Per site `A [L, T, r, in]`, and per target `B [L, r, out]`."""
        shapes: dict[str, tuple[int, ...]] = {}
        for site in self.sites:
            shapes[self._a(site)] = (self._blocks, len(site.targets), method.rank, site.inputs)
            for target, outputs in zip(site.targets, site.outputs, strict=True):
                shapes[self._b(target)] = (self._blocks, method.rank, outputs)
        return shapes

    def initial(self, method: LowRankMethod, generator: torch.Generator) -> dict[str, Tensor]:
        """A random, B zero."""
        tensors = {}
        for name, shape in self.shapes(method).items():
            tensors[name] = torch.zeros(shape, dtype=torch.float64)
            if name.endswith(".A"):
                bound = 1 / math.sqrt(shape[-1])
                tensors[name].uniform_(-bound, bound, generator=generator)
        return tensors

    def make(self, parameters: Mapping[str, Tensor], ranks: Tensor) -> list[Factors]:
        """The parameters themselves; nothing is computed."""
        return [
            (parameters[self._a(site)], tuple(parameters[self._b(t)] for t in site.targets))
            for site in self.sites
        ]

    def _a(self, site: Site) -> str:
        return f"{self._prefix}{site.name}.A"

    def _b(self, target: str) -> str:
        return f"{self._prefix}{target}.B"


class GeneratedFactors:
    r"""RepLoRA's factors: outputs of one small generator per side, shared by the targets [1].

    Known: `[A_Q, A_V] = g_A(a)`, `[B_Q, B_V] = g_B(b)`, two MLPs shared by query and value, with
    learned diagonal seeds. The architecture below is a *choice* of this project; the hidden layer is that
    of `replora.methods.generator`:

        A_t[j, :] = head_A,t . hidden_A[j, :]      t = query, value; j < rank
        B_t[:, j] = head_B,t . hidden_B[j, :]

    Start: A-heads scaled so that A has LoRA's standard deviation `1 / sqrt(3 in)`, the heads of the zero
    side 0.

    References:
        [1] Truong et al., "RepLoRA", ICML 2025, slides "RepLoRA: Reparameterizing Low-Rank Adaptation".
    """

    def __init__(self, group: Group, sites: Sequence[Site], method: GeneratedMethod) -> None:
        self.sites = tuple(sites)
        self._prefix = group.name
        self._blocks = 1 if method.scope == "model" else len(group.blocks)
        targets = [target for site in self.sites for target in site.targets]
        #: The generator of each target, which is also its seed.
        self._networks = {target: 0 if method.shared else index for index, target in enumerate(targets)}
        seeds = sorted(set(self._networks.values()))
        self._hidden = {side: self._layer(side, group, seeds, method) for side in ("A", "B")}
        #: Features that a target's B-head makes.
        self._made = {t: o for site in self.sites for t, o in zip(site.targets, site.outputs, strict=True)}

    def _layer(
        self, side: str, group: Group, networks: Sequence[int], method: GeneratedMethod
    ) -> HiddenLayer:
        return HiddenLayer(f"{self._prefix}generator.{side}", len(group.blocks), networks, method)

    def shapes(self, method: LowRankMethod) -> Shapes:
        """Of the two hidden layers, and the heads `[L', T, h, in]` and `[L', h, made]`.

        L' is 1 where one generator serves all blocks.
        """
        assert isinstance(method, GeneratedMethod)
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in self._hidden.values():
            shapes |= layer.shapes(method)
        for site in self.sites:
            shapes[self._head_a(site)] = (self._blocks, len(site.targets), method.hidden, site.inputs)
            for target in site.targets:
                shapes[self._head_b(target)] = (self._blocks, method.hidden, self._made[target])
        return shapes

    def initial(self, method: LowRankMethod, generator: torch.Generator) -> dict[str, Tensor]:
        """The start described above."""
        assert isinstance(method, GeneratedMethod)
        shapes = self.shapes(method)
        tensors = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}
        for side, layer in self._hidden.items():
            tensors |= layer.initial(method, generator)
            if side != method.zero_side:
                alone = {name: tensor.unsqueeze(0) for name, tensor in tensors.items()}
                hidden = layer(alone, torch.tensor([method.rank]))
                self._start_heads(side, tensors, hidden.square().mean().item(), generator)
        return tensors

    def _start_heads(
        self, side: str, tensors: dict[str, Tensor], power: float, generator: torch.Generator
    ) -> None:
        """Normal heads whose factor has LoRA's standard deviation, given the hidden layer's mean square."""
        for site in self.sites:
            names = [self._head_a(site)] if side == "A" else [self._head_b(t) for t in site.targets]
            for name in names:
                head = tensors[name]
                wanted = 1 / math.sqrt(3 * site.inputs)
                head.normal_(0.0, wanted / math.sqrt(head.shape[-2] * power), generator=generator)

    def make(self, parameters: Mapping[str, Tensor], ranks: Tensor) -> list[Factors]:
        """All layers of the group at once: one hidden layer and one product per head and side."""
        hidden = {side: layer(parameters, ranks) for side, layer in self._hidden.items()}
        factors = []
        for site in self.sites:
            first, last = self._networks[site.targets[0]], self._networks[site.targets[-1]]
            a = hidden["A"][:, :, first : last + 1] @ parameters[self._head_a(site)]
            b = tuple(self._make_b(t, hidden["B"], parameters[self._head_b(t)]) for t in site.targets)
            factors.append((a, b))
        return factors

    def _make_b(self, target: str, hidden: Tensor, head: Tensor) -> Tensor:
        """Transposed B of a target, `[K, L, R, O]`, of hidden layers `[K, L, U, R, H]` and its head."""
        return hidden[:, :, self._networks[target]] @ head

    def _head_a(self, site: Site) -> str:
        return f"{self._prefix}generator.A.head.{site.name}"

    def _head_b(self, target: str) -> str:
        return f"{self._prefix}generator.B.head.{target}"
