"""A slot's parameters as one row of a matrix, so that a pack's state is `[K, P]` tensors.

One row per slot makes everything per slot cheap and exact: clipping is a norm over a row, AdamW a
few products over the matrix with a column of learning rates, a refill writes a row, a checkpoint
reads one. Slots of different ranks and widths share a layout padded to the largest; the padding is
zero and stays zero (its gradients are exactly zero, see `replora.methods.factors`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Layout", "Shapes"]

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Layout:
    """Names, padded shapes and offsets of a row of `width` numbers."""

    shapes: dict[str, tuple[int, ...]]

    @classmethod
    def covering(cls, slots: Sequence[Shapes]) -> Layout:
        """The smallest layout in which every slot's shapes fit, dimension by dimension."""
        shapes: dict[str, tuple[int, ...]] = {}
        for own in slots:
            for name, shape in own.items():
                before = shapes.get(name, shape)
                shapes[name] = tuple(max(pair) for pair in zip(before, shape, strict=True))
        return cls(shapes)

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
