"""What the rest of the project knows of a task: splits, a loss per slot, metrics with a direction.

Shape letters: K slots, B examples, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from replora.errors import ConfigError

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Batch",
    "Direction",
    "Forward",
    "Split",
    "SplitName",
    "Task",
    "TextProcessor",
    "for_every_slot",
    "tokenizer_for",
]

#: A task gives colour images `[B, 3, H, W]` on the scale [0, 1] normalized by these (known: ImageNet's
#: red, green, blue); a backbone that was pre-trained with other numbers converts them.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Batch = Mapping[str, Tensor]
Direction = Literal["maximize", "minimize"]
SplitName = Literal["train", "val", "test"]
#: Runs the model of every slot on the same or own examples: tensors `[K, B, ...]` in, `[K, B, C]` out;
#: where a task has no head (`head_width` 0), `[K, B, ...]` as the backbone gives them.
Forward = Callable[[Batch], Tensor]


class Split(Protocol):
    """A fixed set of examples."""

    def __len__(self) -> int: ...

    def take(self, indices: Tensor, generator: torch.Generator | None) -> dict[str, Tensor]:
        """Examples `[B, ...]` at `indices [B]`; `generator` drives random augmentation, None means none."""
        ...


class TextProcessor(Protocol):
    """Between texts and the tokens of a language model."""

    @property
    def end(self) -> int:
        """The token that ends a text."""
        ...

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of each text, with the start token where the model has one."""
        ...

    def decode(self, tokens: Sequence[Sequence[int]]) -> list[str]:
        """Texts without special tokens."""
        ...


class Task(Protocol):
    """A data set with its loss and metrics."""

    head_width: int
    metric: str
    direction: Direction
    data_hash: str

    def split(self, name: SplitName) -> Split:
        """The named split, loaded once."""
        ...

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Mean loss over the examples of each slot: `[K, B, C]` and a batch `[K, B, ...]` to `[K]`.

        Where `head_width` is 0, `output` is what the backbone gives, for example the losses of tokens.
        """
        ...

    def evaluate(self, forward: Forward, slots: int, split: SplitName) -> list[dict[str, float]]:
        """Metrics of each of `slots` slots over a whole split; `forward` gets the same examples for all."""
        ...


def for_every_slot(batch: Batch, slots: int) -> dict[str, Tensor]:
    """The same examples for each slot of a pack: tensors `[B, ...]` as `[K, B, ...]`, not copied."""
    return {name: each.expand(slots, *each.shape) for name, each in batch.items()}


def tokenizer_for(task: str, processor: TextProcessor | None, model: str, example: str) -> TextProcessor:
    """The tokenizer of the backbone that a task of texts is given.

    Args:
        task: Name of the task.
        processor: What came with the backbone.
        model: What the task needs, for the message.
        example: Name of such a backbone, for the message.

    Raises:
        ConfigError: If there is none.
    """
    if processor is None:
        raise ConfigError(
            f"task.name: {task} needs a {model} with a tokenizer, and this backbone has none.\n"
            f"  Set backbone.name to hf/<folder>, or backbone.weights of {example} to its folder."
        )
    return processor
