r"""Prefix tuning: learned keys and values that every query of every attention sees beside the tokens.

    attention([k_1 ... k_T, p_K], [v_1 ... v_T, p_V])         p_K, p_V [P, D] of each attention    [1]

    direct    p_K and p_V are the parameters
    mlp       p_K = tanh(E W + w) H_K + h_K, and the same for p_V; E [P, e] and W are shared by all blocks

A causal query sees the whole prefix. Where tokens have positions, the prefix stands before them: tokens
begin at position P, and the learned keys are not rotated (as in PEFT, whose prefix tuning this equals).
The start is random: training does *not* start at the base, because even keys and values of zero take
a part of every query's attention.

Padding: a dead token of a slot's prefix is masked out of the attention, so it gets no gradient.

References:
    [1] Li and Liang, "Prefix-Tuning", ACL 2021.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from replora.config import MethodConfig, PrefixMethod
from replora.errors import ConfigError
from replora.methods.layout import Shapes
from replora.methods.linear import freeze_linears
from replora.methods.sites import Group, group_targets, select_targets
from replora.methods.structure import Seam, copy_structure, packed_features
from replora.models.base import Backbone
from replora.models.prefix import Prefix, Sight
from replora.tasks.base import Batch

__all__ = ["PrefixAdaptation"]

_SIDES = ("key", "value")


class PrefixAdaptation:
    """Every attention of the backbone sees a prefix of its own.

    Raises:
        ConfigError: If the backbone's attention cannot take one.
    """

    def __init__(self, backbone: Backbone, method: PrefixMethod) -> None:
        if backbone.attend is None:
            raise ConfigError(
                f"method.name: prefix needs an attention that takes further keys and values, and "
                f"{backbone.name} has none that this project can extend.\n"
                "  Choose another method (`replora ls methods`)."
            )
        self._backbone = backbone
        self.model = copy_structure(backbone.model)
        freeze_linears(self.model)
        self._dtype = next(backbone.model.parameters()).dtype
        self._by_mlp = method.made == "mlp"
        targets = select_targets(backbone.targets, _SIDES)
        self._groups = group_targets(targets)
        self._heads = {target.block: target.heads for target in targets}
        self._widths = {(target.block, target.name): target.outputs for target in targets}
        self._prefixes: dict[str, Prefix] = {}
        backbone.attend(self.model, self._prefixes)
        self._seam = Seam()

    def shapes(self, method: MethodConfig) -> Shapes:
        """Direct: `key` and `value [L, P, D]`. MLP: its parts, and a head `[L, h, D]` with bias for each."""
        prefix = _prefix(method)
        if not self._by_mlp:
            return {name: (len(group.blocks), prefix.tokens, width) for group, name, width in self._outputs()}
        embedding = self._widths[self._groups[0].blocks[0], "key"]
        shapes: dict[str, tuple[int, ...]] = {
            "embedding": (prefix.tokens, embedding),
            "hidden.weight": (embedding, prefix.hidden),
            "hidden.bias": (prefix.hidden,),
        }
        for group, name, width in self._outputs():
            shapes[f"{name}.weight"] = (len(group.blocks), prefix.hidden, width)
            shapes[f"{name}.bias"] = (len(group.blocks), width)
        return shapes

    def initial(self, method: MethodConfig, generator: torch.Generator) -> dict[str, Tensor]:
        """Keys and values (or embeddings) normal; the MLP as torch starts linear layers."""
        prefix = _prefix(method)
        tensors = {}
        for name, shape in self.shapes(method).items():
            tensors[name] = torch.empty(shape, dtype=torch.float64)
            if name.endswith((".weight", ".bias")):
                inputs = self._widths[self._groups[0].blocks[0], "key"] if "hidden" in name else prefix.hidden
                bound = 1 / math.sqrt(inputs)
                tensors[name].uniform_(-bound, bound, generator=generator)
            else:
                tensors[name].normal_(0.0, prefix.deviation, generator=generator)
        return tensors

    def prepare(self, parameters: Mapping[str, Tensor], methods: Sequence[MethodConfig]) -> None:
        """Makes the keys and values of all blocks and hands each attention its own."""
        self._seam = Seam()
        made = self._by_encoder(parameters) if self._by_mlp else parameters
        tokens = made[self._outputs()[0][1]].shape[2]
        sight = Sight(tuple(_prefix(method).tokens for method in methods), tokens)
        for group in self._groups:
            key, value = (self._per_block(made[f"{group.name}{side}"], group) for side in _SIDES)
            modules = next(site for site in group.sites if "key" in site.targets).modules
            for index, module in enumerate(modules):
                attention = module.rpartition(".")[0]
                self._prefixes[attention] = Prefix(key[index], value[index], sight)

    def features(self, batch: Batch) -> Tensor:
        """One pass of all slots, `[K, B, ...]` to `[K, B, ...]`."""
        return packed_features(self._backbone, self.model, batch)

    def settle(self) -> None:
        """Runs the encoder backward, once per step."""
        self._seam.settle()

    def drop_with(self, generators: Sequence[torch.Generator] | None) -> None:
        """Prefixes have no dropout."""

    def _outputs(self) -> list[tuple[Group, str, int]]:
        """Every group's keys and values: the group, their name and width."""
        return [
            (group, f"{group.name}{side}", self._widths[group.blocks[0], side])
            for group in self._groups
            for side in _SIDES
        ]

    def _by_encoder(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Keys and values `[K, L, P, D]` by name, made by the MLP."""
        bias = parameters["hidden.bias"].unsqueeze(1)
        hidden = torch.tanh(torch.baddbmm(bias, parameters["embedding"], parameters["hidden.weight"]))
        return {
            name: hidden.unsqueeze(1) @ parameters[f"{name}.weight"] + parameters[f"{name}.bias"].unsqueeze(2)
            for _, name, _ in self._outputs()
        }

    def _per_block(self, made: Tensor, group: Group) -> Sequence[Tensor]:
        """`[K, L, P, H * D]` in the base's type as L tensors `[K, H, P, D]`."""
        heads = self._heads[group.blocks[0]]
        shares = [self._seam.cut(share) for share in made.to(self._dtype).unbind(1)]
        return [share.unflatten(2, (heads, -1)).transpose(1, 2) for share in shares]


def _prefix(method: MethodConfig) -> PrefixMethod:
    assert isinstance(method, PrefixMethod), f"a pack of prefixes got the method {method.name}"
    return method
