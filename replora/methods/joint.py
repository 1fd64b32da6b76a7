"""HoRA's factors: one network makes a B for each attention head."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

from torch import Tensor

from replora.config import GeneratedMethod
from replora.errors import ConfigError
from replora.methods.factors import GeneratedFactors
from replora.methods.generator import HiddenLayer
from replora.methods.sites import Group, Site

__all__ = ["JointFactors"]


class JointFactors(GeneratedFactors):
    r"""A from one seed, and a B for each attention head, from networks that the heads of a block share [1].

    Head n of target t has output rows `W0_t,n + s B_t,n A_t`. Reported: a joint hypernetwork makes `A_Q` and
    `A_V` from one learned seed, and every head's `B_Q,n` and `B_V,n`. *Choices*: the network has one hidden
    layer on each side, as RepLoRA's; a head has a seed `b_t,n` of its own; the heads of a target share the
    output layer, so that there are few more parameters than LoRA's:

        A_t[j, :] = head_A,t . hidden_A[j, :]             head_A,t [h, in]
        B_t,n[:, j] = head_B,t . hidden_B,t,n[j, :]       head_B,t [h, d_h]

    Seeds of heads start apart from one another. One under another, the B of all heads are the B of a plain
    update of the same rank. Grouped queries need nothing further: a target has as many seeds as heads.

    Raises:
        ConfigError: If a target has no attention heads.

    References:
        [1] Diep et al., "HoRA", arXiv 2510.04295.
    """

    def __init__(self, group: Group, sites: Sequence[Site], method: GeneratedMethod) -> None:
        heads = {t: n for site in sites for t, n in zip(site.targets, site.heads, strict=True)}
        without = [target for target, count in heads.items() if count == 0]
        if without:
            raise ConfigError(
                f"method.targets of hora must have attention heads, but {', '.join(without)} has none.\n"
                "  Name it in method.plain_targets."
            )
        edges = pairwise(accumulate(heads.values(), initial=0))
        #: Where the heads of each target are among all of a block.
        self._heads = {target: slice(*edge) for target, edge in zip(heads, edges, strict=True)}
        super().__init__(group, sites, method)
        self._made = {target: width // heads[target] for target, width in self._made.items()}

    def _layer(
        self, side: str, group: Group, networks: Sequence[int], method: GeneratedMethod
    ) -> HiddenLayer:
        if side == "B":
            own = self._heads.items()
            networks = [
                self._networks[target] for target, heads in own for _ in range(heads.start, heads.stop)
            ]
        return super()._layer(side, group, networks, method)

    def _make_b(self, target: str, hidden: Tensor, head: Tensor) -> Tensor:
        pieces = hidden[:, :, self._heads[target]] @ head.unsqueeze(2)  # [K, L, n, R, d_h]
        return pieces.transpose(2, 3).flatten(3)
