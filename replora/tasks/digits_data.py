"""scikit-learn's handwritten digits: 1,797 real images of 8 x 8 pixels, cached as one small file.

The cache spares every training process the import of scikit-learn.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from replora.cache import cached_tensors

__all__ = ["Digits", "load_digits", "shuffled_by_class"]

#: Mean and standard deviation of the pixels of classes 0 to 4 on the scale [0, 1] (known: computed
#: from the data; the classes of the transfer task have no say in it).
_MEAN, _STD = 0.305, 0.378


@dataclass(frozen=True)
class Digits:
    """The whole data set.

    Attributes:
        images: `[1797, 1, 8, 8]`, float32, normalized.
        labels: `[1797]`, int64, 0 to 9.
        data_hash: Hash of the raw pixels and labels.
    """

    images: Tensor
    labels: Tensor
    data_hash: str


def load_digits() -> Digits:
    """All digits, from the cache, or from scikit-learn when they are not cached yet."""
    raw, data_hash = cached_tensors("digits-data", {"version": 1}, _from_sklearn)
    images = (raw["images"].float() / 16.0 - _MEAN) / _STD
    return Digits(images.unsqueeze(1), raw["labels"].long(), data_hash)


def shuffled_by_class(labels: Tensor, classes: range, seed: int) -> list[list[int]]:
    """Positions of the examples of each class, shuffled in a fixed order."""
    generator = torch.Generator().manual_seed(seed)
    result = []
    for label in classes:
        positions = torch.nonzero(labels == label).flatten()
        result.append(positions[torch.randperm(len(positions), generator=generator)].tolist())
    return result


def _from_sklearn() -> dict[str, Tensor]:
    from sklearn.datasets import load_digits as sklearn_digits

    data = sklearn_digits()
    return {
        "images": torch.from_numpy(data.images).to(torch.uint8),
        "labels": torch.from_numpy(data.target).to(torch.uint8),
    }
