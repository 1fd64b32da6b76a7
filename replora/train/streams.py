"""Random streams of a run as functions of its seed and step, so that resuming needs no stored state.

The examples of step s are positions `[s B, (s + 1) B)` of one endless sequence: a fresh permutation
of the training split per epoch. Dropout and augmentation draw from generators seeded per step and pass.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

__all__ = ["example_indices", "initial_generator", "pass_generator"]

#: Purposes that must not share a stream; the numbers are part of every recorded result.
_INITIAL, _ORDER, _STEP = 0, 1, 2


def example_indices(seed: int, examples: int, start: int, count: int) -> Tensor:
    """Indices `[count]` of the examples at positions `start, start + 1, ...` of the run's sequence."""
    parts, position, left = [], start, count
    while left > 0:
        epoch, offset = divmod(position, examples)
        part = _permutation(seed, examples, epoch)[offset : offset + left]
        parts.append(part)
        position, left = position + len(part), left - len(part)
    return torch.from_numpy(np.concatenate(parts))


def initial_generator(seed: int) -> torch.Generator:
    """Draws a run's starting parameters."""
    return torch.Generator().manual_seed(_entropy(seed, _INITIAL, 0))


def pass_generator(seed: int, step: int, index: int, device: torch.device) -> torch.Generator:
    """Draws dropout and augmentation of one pass of a step, whatever rank runs it."""
    return torch.Generator(device).manual_seed(_entropy(seed, _STEP, step, *([index] if index else [])))


@lru_cache(maxsize=256)
def _permutation(seed: int, examples: int, epoch: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.random.default_rng([seed, _ORDER, epoch]).permutation(examples)


def _entropy(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
