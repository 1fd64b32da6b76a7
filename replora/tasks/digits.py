"""The digits 5 to 9 as a transfer problem for a backbone that has only seen 0 to 4."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor

from replora.config import DigitsTask
from replora.tasks.base import SplitName
from replora.tasks.classification import Classification
from replora.tasks.digits_data import load_digits, shuffled_by_class

__all__ = ["CLASSES", "MemorySplit", "digits_task", "split_positions"]

#: Classes of this task; `vit-digits` is pre-trained on the others.
CLASSES = range(5, 10)
_TRAIN_PER_CLASS = 80
_SPLIT_SEED = 20240607  # choice; changing it changes every result on this task
_EVALUATION_BATCH = 32  # choice; a pack of 13 then stays in the caches (docs/log.md)


class MemorySplit:
    """Examples in memory: images `[N, 1, 8, 8]`, labels `[N]`; no augmentation."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self._images = images
        self._labels = labels

    def __len__(self) -> int:
        return len(self._labels)

    def take(self, indices: Tensor, generator: torch.Generator | None) -> dict[str, Tensor]:
        """`image [B, 1, 8, 8]` and `label [B]` at `indices [B]`; `generator` is not used."""
        indices = indices.to(self._labels.device)
        return {
            "image": self._images.index_select(0, indices),
            "label": self._labels.index_select(0, indices),
        }


def split_positions(labels: Tensor, train_images: int) -> dict[SplitName, list[int]]:
    """Positions of the three splits in the whole data set; fixed, disjoint and stratified.

    The training split is a prefix of one list of 400 that goes round the classes, so that a smaller
    one is even over the classes and contained in every larger one. What is not among the 400 goes to
    `val` and `test` in turn, whatever `train_images` is.
    """
    by_class = shuffled_by_class(labels, CLASSES, _SPLIT_SEED)
    train = list(chain.from_iterable(zip(*(each[:_TRAIN_PER_CLASS] for each in by_class), strict=True)))
    rest = list(chain.from_iterable(each[_TRAIN_PER_CLASS:] for each in by_class))
    return {"train": train[:train_images], "val": rest[0::2], "test": rest[1::2]}


def digits_task(config: DigitsTask, dtype: torch.dtype, device: torch.device) -> Classification:
    """The task, with all images in memory."""
    digits = load_digits()

    def split(positions: list[int]) -> MemorySplit:
        images, labels = digits.images[positions], digits.labels[positions] - CLASSES.start
        return MemorySplit(images.to(device, dtype), labels.to(device))

    positions = split_positions(digits.labels, config.train_images)
    return Classification(
        {name: split(each) for name, each in positions.items()},
        tuple(str(label) for label in CLASSES),
        digits.data_hash,
        _EVALUATION_BATCH,
    )
