"""A slot's parameters as one row of a matrix, so that a pack's state is `[K, P]` tensors.

One row per slot makes everything per slot cheap and exact: clipping is a norm over a row, AdamW a
few products over the matrix with a column of learning rates, a refill writes a row, a checkpoint
reads one. Slots of different sizes share a layout that covers the largest; the padding is
zero and stays zero (its gradients are exactly zero, see `replora.methods.factors`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from pydantic import BaseModel
from torch import Tensor

M = TypeVar("M", bound=BaseModel)

__all__ = ["Layout", "Shapes", "cover"]

Shapes = Mapping[str, tuple[int, ...]]

#: Sizes are padded to multiples of this, even in a pack of one. From 16 on, more zeros do
#: not change how this project's CPU matrix products round, so a trial's numbers are bit for bit the
#: same whatever sizes its neighbours have (tests/contracts).
PADDING = 16
#: Fields of methods that are sizes of parameters and may differ between slots.
_SIZES = ("rank", "hidden", "bottleneck", "tokens")


def cover(methods: Sequence[M]) -> M:
    """One method whose parameters hold those of every given method, padding included."""
    first = methods[0]
    sizes = [name for name in _SIZES if name in type(first).model_fields]
    changes = {name: _padded(max(getattr(method, name) for method in methods)) for name in sizes}
    return first.model_copy(update=changes)


def _padded(number: int) -> int:
    return -(-number // PADDING) * PADDING


@dataclass(frozen=True)
class Layout:
    """Names, padded shapes and offsets of a row of `width` numbers."""

    shapes: Shapes

    @property
    def width(self) -> int:
        """Numbers in a row, P."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def views(self, matrix: Tensor) -> dict[str, Tensor]:
        """Named views `[K, *shape]` into a matrix `[K, P]`; they share its memory."""
        views, offset = {}, 0
        for name, shape in self.shapes.items():
            end = offset + math.prod(shape)
            views[name] = matrix[:, offset:end].view(-1, *shape)
            offset = end
        return views

    def write(self, row: Tensor, tensors: Mapping[str, Tensor]) -> None:
        """Puts a slot's own tensors into the leading corners of its row `[P]`; padding becomes zero."""
        row.zero_()
        for name, view in self.views(row.unsqueeze(0)).items():
            if name in tensors:
                view[0][_corner(tensors[name].shape)] = tensors[name]

    def read(self, row: Tensor, own: Shapes) -> dict[str, Tensor]:
        """Copies a slot's own tensors out of its row `[P]`."""
        views = self.views(row.unsqueeze(0))
        return {name: views[name][0][_corner(shape)].clone() for name, shape in own.items()}


def _corner(shape: Sequence[int] | torch.Size) -> tuple[slice, ...]:
    return tuple(slice(0, size) for size in shape)
