r"""How a low-rank update enters the frozen weight: beside it, or inside its weight decomposition.

    additive             W' = W0 + s B A
    weight-decomposed    W' = m (W0 + s B A) / ||W0 + s B A||_c              DoRA [1]
    noised               W' = m (W0 + s B A) / (||W0 + s B A||_c + tau)      DoRAN [2]

`||.||_c` is the norm of each output row. All but the first multiply each output by a gain
`g = m / (||.||_c + tau)`, so a layer needs `g [K, O]` and never `W'`. The norm is a constant in the
gradient [1, section 4.3]. It comes from

    ||W0 + s B A||^2 = ||W0||^2 + 2 s rowsum((W0 A^T) B) + s^2 rowsum(B (A A^T) B)

once per step, with nothing of size `[K, O, I]`. Start: `m = ||W0||_c + tau0`, so the gain is exactly 1.

Reported [2]: tau is positive and learned. *Choices*: `tau = softplus(raw)`, one per target and block,
`tau0 = 0.1`; the norm is a constant for DoRAN too; the base's own product sees no dropout.

References:
    [1] Liu et al., "DoRA", ICML 2024.
    [2] Diep et al., "DoRAN", arXiv 2510.04331.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from replora.config import ComposedMethod, LowRankMethod
from replora.methods.factors import Factors
from replora.methods.layout import Shapes
from replora.methods.linear import frozen_linear
from replora.methods.sites import Group, Site

__all__ = ["Decomposition", "decomposition"]


def decomposition(
    group: Group, site: Site, weight: Callable[[str], Tensor], method: LowRankMethod
) -> Decomposition | None:
    """The weight decomposition of a site's targets, or None where the method is additive."""
    if not isinstance(method, ComposedMethod) or method.composition == "additive":
        return None
    return Decomposition(group, site, weight, noised=method.composition == "noised")


class Decomposition:
    """Magnitudes, noise and gains of the targets of one site, all blocks of its group.

    Args:
        group: Names the parameters.
        site: The targets.
        weight: The whole frozen weight of a linear by its dotted path.
        noised: Whether tau is added to the norm.
    """

    def __init__(self, group: Group, site: Site, weight: Callable[[str], Tensor], noised: bool) -> None:
        self._site, self._prefix, self._noised = site, group.name, noised
        self._weight = weight
        self._norms: dict[str, Tensor] = {}

    def shapes(self) -> Shapes:
        """Per target `magnitude [L, O]`, and where noised `noise [L, 1]` (tau before softplus)."""
        shapes: dict[str, tuple[int, ...]] = {}
        blocks = len(self._site.modules)
        for target, outputs in zip(self._site.targets, self._site.outputs, strict=True):
            shapes[self._magnitude(target)] = (blocks, outputs)
            if self._noised:
                shapes[self._noise(target)] = (blocks, 1)
        return shapes

    def initial(self, method: LowRankMethod) -> dict[str, Tensor]:
        """`m = ||W0||_c + tau0` (fp64), for which every gain is 1."""
        tensors: dict[str, Tensor] = {}
        for target in self._site.targets:
            norms = self._base_norms(target)
            tensors[self._magnitude(target)] = norms.cpu().clone()
            if self._noised:
                assert isinstance(method, ComposedMethod)
                raw = torch.tensor(math.log(math.expm1(method.tau))).double()  # a number that fp32 has
                tensors[self._noise(target)] = raw.expand(len(norms), 1).clone()
                tensors[self._magnitude(target)] += functional.softplus(raw)
        return tensors

    def gains(self, parameters: Mapping[str, Tensor], factors: Factors, scale: Tensor) -> tuple[Tensor, ...]:
        """Gains `[K, L, O]` of each target; differentiable in m and tau alone.

        Args:
            parameters: Of K slots.
            factors: The site's own.
            scale: `alpha / rank` of each slot, `[K, 1]`.
        """
        gains = []
        for index, target in enumerate(self._site.targets):
            magnitude = parameters[self._magnitude(target)]
            norm = self._norm(index, target, factors, scale)
            if self._noised:
                norm = norm + functional.softplus(parameters[self._noise(target)].double())
            gains.append(magnitude / norm.to(magnitude.dtype))
        return tuple(gains)

    @torch.no_grad()
    def _norm(self, index: int, target: str, factors: Factors, scale: Tensor) -> Tensor:
        """`||W0 + s B A||_c` in fp64, `[K, L, O]`; exactly the base's norm where the update is zero."""
        base, changes = self._base_norms(target), []
        for layer, weight in enumerate(self._weights(target)):
            a, b = factors[0][:, layer, index].detach(), factors[1][index][:, layer].detach()
            crossed = frozen_linear(a.to(weight.dtype), weight, None).to(b.dtype)
            squared = torch.bmm(torch.bmm(a, a.transpose(1, 2)), b)
            changes.append(2 * scale * (crossed * b).sum(1) + scale**2 * (squared * b).sum(1))
        relative = torch.stack(changes, 1).double() / base.square().clamp_min(_TINY)
        return (base * (1 + relative).clamp_min(0).sqrt()).clamp_min(_TINY)

    def _base_norms(self, target: str) -> Tensor:
        """`||W0||_c` of every block in fp64, `[L, O]`; computed once."""
        if target not in self._norms:
            weights = [weight.double().norm(dim=1) for weight in self._weights(target)]
            self._norms[target] = torch.stack(weights)
        return self._norms[target]

    def _weights(self, target: str) -> Iterator[Tensor]:
        """Block by block: where ranks share the weights, each is whole only while it is read."""
        low, high = self._site.rows[self._site.targets.index(target)]
        for path in self._site.modules:
            yield self._weight(path)[low:high]

    def _magnitude(self, target: str) -> str:
        return f"{self._prefix}{target}.magnitude"

    def _noise(self, target: str) -> str:
        return f"{self._prefix}{target}.noise"


_TINY = 1e-30  # far below the norm of any row that is not zero
