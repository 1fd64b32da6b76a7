r"""The hidden layer of a generator: learned seeds through a small network, once per optimizer step.

    hidden_u[j, :] = act(sum_i seed_u[j, i] W1[i, :] + bias)        u = unit, j < rank

A *unit* is one seed: of all targets of a block, of one target, or of one attention head. Several units
may go through one network, and one network may serve all blocks. Shape letters: K slot, L block of a
group, U unit, G network, R rank, H hidden width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from replora.config import GeneratedMethod
from replora.methods.layout import Shapes

__all__ = ["ACTIVATIONS", "HiddenLayer"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "relu": torch.relu,
    "tanh": torch.tanh,
    "identity": lambda hidden: hidden,
}


class HiddenLayer:
    """Seeds and first layer of one side's generators.

    Args:
        name: Prefix of the parameters' names.
        blocks: Blocks of the group, L.
        networks: The network of each unit, from 0.
        method: Gives the form of the seeds, the activation and the scope.
    """

    def __init__(self, name: str, blocks: int, networks: Sequence[int], method: GeneratedMethod) -> None:
        self._name, self._blocks, self._networks = name, blocks, tuple(networks)
        self._whole_model = method.scope == "model"
        self._dense = method.seed == "dense"
        self._activation = ACTIVATIONS[method.activation]

    def shapes(self, method: GeneratedMethod) -> Shapes:
        """Seeds `[L, U, r(, r)]`, W1 `[L', G, r, h]` and bias `[L', G, 1, h]`.

        L' is 1 where one network serves all blocks.
        """
        rank, hidden = method.rank, method.hidden
        seed = (rank, rank) if self._dense else (rank,)
        networks = (1 if self._whole_model else self._blocks, max(self._networks) + 1)
        return {
            f"{self._name}.seed": (self._blocks, len(self._networks), *seed),
            f"{self._name}.weight": (*networks, rank, hidden),
            f"{self._name}.bias": (*networks, 1, hidden),
        }

    def initial(self, method: GeneratedMethod, generator: torch.Generator) -> dict[str, Tensor]:
        """Seeds 1 (dense: the identity) or, where units share a network, normal of the same mean square.

        W1 is uniform in `+-1 / sqrt(r)`, the default of a linear layer with r inputs; biases are 0.
        """
        tensors = {
            name: torch.zeros(shape, dtype=torch.float64) for name, shape in self.shapes(method).items()
        }
        seed, bound = tensors[f"{self._name}.seed"], 1 / math.sqrt(method.rank)
        if len(self._networks) > len(set(self._networks)):  # equal seeds would make equal factors
            seed.normal_(0.0, bound if self._dense else 1.0, generator=generator)
        else:
            seed.copy_(torch.eye(method.rank) if self._dense else torch.ones(()))
        tensors[f"{self._name}.weight"].uniform_(-bound, bound, generator=generator)
        return tensors

    def __call__(self, parameters: Mapping[str, Tensor], ranks: Tensor) -> Tensor:
        """`[K, L, U, R, H]`, zero beyond each slot's own rank (`act(bias)` is not)."""
        seed = parameters[f"{self._name}.seed"]
        weight, bias = (self._spread(parameters[f"{self._name}.{part}"]) for part in ("weight", "bias"))
        mixed = seed @ weight if self._dense else seed.unsqueeze(-1) * weight
        hidden = self._activation(mixed + bias)
        columns = torch.arange(hidden.shape[-2], device=hidden.device)
        live = (columns < ranks.unsqueeze(1)).to(hidden.dtype)
        return hidden * live.view(len(ranks), 1, 1, -1, 1)

    def _spread(self, parameter: Tensor) -> Tensor:
        """A network's `[K, L', G, ...]` for every block and unit, `[K, L, U, ...]`.

        Copies instead of broadcasting, because their gradients are then added one after the other: a sum
        over several axes at once rounds differently when a neighbour's width pads the last one further.
        """
        if self._whole_model:
            parameter = torch.stack(self._blocks * [parameter[:, 0]], 1)
        if self._networks == tuple(range(parameter.shape[2])):
            return parameter
        return torch.stack([parameter[:, :, network] for network in self._networks], 2)
