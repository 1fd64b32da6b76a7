"""Loss and metrics of classification, per slot."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from replora.errors import DataError
from replora.tasks.base import Batch, Direction, Forward, Split, SplitName, for_every_slot

__all__ = ["Classification"]


class Classification:
    """A classification task on fixed splits: cross-entropy, accuracy.

    Args:
        splits: The splits by name.
        classes: Names of the classes, in order of their labels.
        data_hash: Hash of the data.
        evaluation_batch: Examples per slot and forward pass in `evaluate`.
    """

    metric: str = "accuracy"
    direction: Direction = "maximize"

    def __init__(
        self, splits: dict[SplitName, Split], classes: tuple[str, ...], data_hash: str, evaluation_batch: int
    ) -> None:
        self._splits = splits
        self.classes = classes
        self.head_width = len(classes)
        self.data_hash = data_hash
        self._evaluation_batch = evaluation_batch

    def split(self, name: SplitName) -> Split:
        """The named split.

        Raises:
            DataError: If it has no examples.
        """
        if name not in self._splits:
            raise DataError(f"the task has no {name} split: its share of the data is 0.")
        return self._splits[name]

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Mean cross-entropy of each slot: logits `[K, B, C]` and `label [K, B]` to `[K]`."""
        return example_losses(output, batch["label"]).mean(dim=1)

    def evaluate(self, forward: Forward, slots: int, split: SplitName) -> list[dict[str, float]]:
        """`accuracy` (a fraction) and `loss` (mean cross-entropy) of every slot over a whole split."""
        examples = self.split(split)
        correct = torch.zeros(slots, dtype=torch.float64)
        loss = torch.zeros(slots, dtype=torch.float64)
        for indices in torch.arange(len(examples)).split(self._evaluation_batch):
            batch = for_every_slot(examples.take(indices, None), slots)
            output = forward(batch)
            correct += (output.argmax(dim=-1) == batch["label"]).sum(dim=1).cpu()
            loss += example_losses(output, batch["label"]).sum(dim=1).double().cpu()
        return [
            {"accuracy": right / len(examples), "loss": total / len(examples)}
            for right, total in zip(correct.tolist(), loss.tolist(), strict=True)
        ]


def example_losses(output: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy of every example, logits `[K, B, C]` and labels `[K, B]` to `[K, B]`."""
    if output.dtype == torch.bfloat16:
        output = output.float()  # a loss in bf16 has two digits
    return F.cross_entropy(output.flatten(0, 1), label.flatten(), reduction="none").view(label.shape)
