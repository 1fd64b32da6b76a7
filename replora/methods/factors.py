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
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from replora.config import GeneratedMethod, LowRankMethod
from replora.methods.layout import Shapes
from replora.methods.sites import Group, Site

__all__ = ["DirectFactors", "FactorSource", "Factors", "GeneratedFactors"]

#: Of one site: A `[K, L, T, R, I]` and, for each target, B transposed `[K, L, R, O]`.
Factors = tuple[Tensor, tuple[Tensor, ...]]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "relu": torch.relu,
    "tanh": torch.tanh,
    "identity": lambda hidden: hidden,
}


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
    learned diagonal seeds. The architecture below is a *choice* of this project:

        A_t[j, :] = head_A,t . act(W1_A[:, j] a_j + bias_A)      t = query, value
        B_t[:, j] = head_B,t . act(W1_B[:, j] b_j + bias_B)

    Start: seeds 1 (dense: the identity), W1 uniform in `+-1 / sqrt(r)` (the default of a linear
    layer with r inputs), biases 0, A-heads scaled so that A has LoRA's standard deviation
    `1 / sqrt(3 in)`, the heads of the zero side 0.

    References:
        [1] Truong et al., "RepLoRA", ICML 2025, slides "RepLoRA: Reparameterizing Low-Rank Adaptation".
    """

    def __init__(self, group: Group, sites: Sequence[Site], method: GeneratedMethod) -> None:
        self.sites = tuple(sites)
        self._blocks = len(group.blocks)
        self._prefix = group.name
        self._targets = [target for site in self.sites for target in site.targets]
        self._generators = 1 if method.shared else len(self._targets)
        self._generator_blocks = 1 if method.scope == "model" else self._blocks
        self._dense = method.seed == "dense"
        self._activation = ACTIVATIONS[method.activation]

    def shapes(self, method: LowRankMethod) -> Shapes:
        """Per side a seed `[L, G, r(, r)]`, W1 `[L', G, r, h]` and bias `[L', G, 1, h]`, and the heads.

        Heads are `[L', T, h, in]` and `[L', h, out]`; G is the number of generators per block, and L' is 1
        where one generator serves all blocks.
        """
        assert isinstance(method, GeneratedMethod)
        rank, hidden, blocks = method.rank, method.hidden, self._generator_blocks
        shapes: dict[str, tuple[int, ...]] = {}
        for side in ("A", "B"):
            seed = (rank, rank) if self._dense else (rank,)
            shapes[f"{self._prefix}generator.{side}.seed"] = (self._blocks, self._generators, *seed)
            shapes[f"{self._prefix}generator.{side}.weight"] = (blocks, self._generators, rank, hidden)
            shapes[f"{self._prefix}generator.{side}.bias"] = (blocks, self._generators, 1, hidden)
        for site in self.sites:
            shapes[self._head_a(site)] = (blocks, len(site.targets), hidden, site.inputs)
            for target, outputs in zip(site.targets, site.outputs, strict=True):
                shapes[self._head_b(target)] = (blocks, hidden, outputs)
        return shapes

    def initial(self, method: LowRankMethod, generator: torch.Generator) -> dict[str, Tensor]:
        """The start described above."""
        assert isinstance(method, GeneratedMethod)
        shapes = self.shapes(method)
        tensors = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}
        bound = 1 / math.sqrt(method.rank)
        for side in ("A", "B"):
            name = f"{self._prefix}generator.{side}"
            seed = tensors[f"{name}.seed"]
            seed.copy_(torch.eye(method.rank) if self._dense else torch.ones(()))
            tensors[f"{name}.weight"].uniform_(-bound, bound, generator=generator)
            if side != method.zero_side:
                alone = {name: tensor.unsqueeze(0) for name, tensor in tensors.items()}
                hidden = self._hidden(side, alone, torch.tensor([method.rank]))
                self._start_heads(side, tensors, hidden.square().mean().item(), generator)
        return tensors

    def _start_heads(
        self, side: Literal["A", "B"], tensors: dict[str, Tensor], power: float, generator: torch.Generator
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
        hidden_a = self._hidden("A", parameters, ranks)
        hidden_b = self._hidden("B", parameters, ranks)
        factors, position = [], 0
        for site in self.sites:
            mine = slice(position, position + len(site.targets)) if self._generators > 1 else slice(0, 1)
            a = hidden_a[:, :, mine] @ parameters[self._head_a(site)]
            b = tuple(
                hidden_b[:, :, position + index if self._generators > 1 else 0] @ parameters[self._head_b(t)]
                for index, t in enumerate(site.targets)
            )
            factors.append((a, b))
            position += len(site.targets)
        return factors

    def _hidden(self, side: str, parameters: Mapping[str, Tensor], ranks: Tensor) -> Tensor:
        """Hidden layer `[K, L, G, R, H]`: `act(seed W1 + bias)`, masked to each slot's own rank."""
        name = f"{self._prefix}generator.{side}"
        seed, weight = parameters[f"{name}.seed"], parameters[f"{name}.weight"]
        mixed = seed @ weight if self._dense else seed.unsqueeze(-1) * weight
        hidden = self._activation(mixed + parameters[f"{name}.bias"])
        columns = torch.arange(hidden.shape[-2], device=hidden.device)
        live = (columns < ranks.unsqueeze(1)).to(hidden.dtype)
        return hidden * live.view(len(ranks), 1, 1, -1, 1)

    def _head_a(self, site: Site) -> str:
        return f"{self._prefix}generator.A.head.{site.name}"

    def _head_b(self, target: str) -> str:
        return f"{self._prefix}generator.B.head.{target}"
