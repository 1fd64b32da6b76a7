"""Private copies of a backbone's module tree, and one pass of all slots through them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from replora.methods.linear import freeze_linears
from replora.models.base import Backbone
from replora.tasks.base import Batch

__all__ = ["Seam", "carry_on", "copy_structure", "packed_features", "replace_linears"]

L = TypeVar("L", bound=nn.Module)


def copy_structure(model: nn.Module) -> nn.Module:
    """A copy of the module tree that shares every parameter and buffer with the original."""
    shared = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})


def replace_linears(model: nn.Module, paths: Iterable[str], layer: Callable[[nn.Linear], L]) -> dict[str, L]:
    """Puts an adapted layer at each path and a frozen product at every other linear.

    Args:
        model: A private module tree, changed in place.
        paths: Dotted paths of linears; repeated ones count once.
        layer: Makes the adapted layer of a linear.

    Returns:
        The adapted layers by path.
    """
    layers: dict[str, L] = {}
    for path in dict.fromkeys(paths):
        linear = model.get_submodule(path)
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"{path} must be an nn.Linear, but got {type(linear).__name__}")
        layers[path] = layer(linear)
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, layers[path])
    freeze_linears(model)
    return layers


def packed_features(backbone: Backbone, model: nn.Module, batch: Batch) -> Tensor:
    """Folds slots into the batch, runs the model once, unfolds: `[K, B, ...]` to `[K, B, ...]`."""
    slots, examples = next(iter(batch.values())).shape[:2]
    folded = {name: tensor.flatten(0, 1) for name, tensor in batch.items()}
    features = backbone.features(model, folded)
    return features.view(slots, examples, *features.shape[1:])


class Seam:
    """What is made of parameters once per step, cut off from the graph that made it.

    The passes of a step add to the gradients of the cut tensors, and one pass backward through the graph
    that made them (`settle`) carries those on: any number of micro-batches, one pass through what is made.
    """

    def __init__(self) -> None:
        self._made: list[Tensor] = []
        self._cut: list[Tensor] = []

    def cut(self, made: Tensor) -> Tensor:
        """The same numbers as a leaf that collects gradients; what needs none comes back as it is."""
        if not made.requires_grad:
            return made
        leaf = made.detach().requires_grad_()
        self._made.append(made)
        self._cut.append(leaf)
        return leaf

    def settle(self) -> None:
        """Carries the collected gradients on into the parameters."""
        made, cut = self._made, self._cut
        self._made, self._cut = [], []
        if made:
            carry_on(made, [leaf.grad for leaf in cut])


def carry_on(made: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
    """Runs the graph that made some tensors backward, from their gradients.

    `torch.autograd.backward` does the same, but its check of the shapes imports sympy, a quarter of a second.
    """
    _Given.apply(grads, *made).backward()


class _Given(torch.autograd.Function):
    """A scalar with given gradients."""

    @staticmethod
    def forward(ctx: Any, grads: Sequence[Tensor | None], *made: Tensor) -> Tensor:
        ctx.grads = grads
        return made[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, *ones: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.grads
