"""Dropout with each slot's own random stream."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["drop_rows"]


def drop_rows(rows: Tensor, generators: Sequence[torch.Generator], rates: Sequence[float]) -> Tensor:
    """Rows `[K, M, I]` of which each slot has dropped its own share; the others are scaled up for it."""
    masks = torch.ones_like(rows)
    for mask, generator, rate in zip(masks, generators, rates, strict=True):
        if rate > 0:
            mask.bernoulli_(1 - rate, generator=generator).div_(1 - rate)
    return rows * masks
