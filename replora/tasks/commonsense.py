"""Commonsense reasoning: learn the texts, judge the generated answers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from replora.config import CommonsenseTask
from replora.tasks.base import (
    Batch,
    Direction,
    Forward,
    SplitName,
    TextProcessor,
    for_every_slot,
    tokenizer_for,
)
from replora.tasks.commonsense_data import CommonsenseData, Item, read_commonsense
from replora.tasks.generation import Search, generate
from replora.tasks.prompts import evaluation_prompt, is_right, training_prompt

__all__ = ["Commonsense", "TextSplit", "commonsense_task"]


class TextSplit:
    """Items as training texts, tokenized when taken.

    Every batch is `cutoff` wide: the width must not depend on which items meet in a pack, because
    dropout draws one number per place.

    Args:
        items: The items.
        config: Template, cutoff, and what the loss is on.
        processor: The model's tokenizer.
        device: Of the batches.
    """

    def __init__(
        self, items: Sequence[Item], config: CommonsenseTask, processor: TextProcessor, device: torch.device
    ) -> None:
        self.items = items
        self._config = config
        self._processor = processor
        self._device = device

    def __len__(self) -> int:
        return len(self.items)

    def take(self, indices: Tensor, generator: torch.Generator | None) -> dict[str, Tensor]:
        """`tokens [B, T]`, padded on the right, and `scored [B, T]`, the tokens that count in the loss.

        A text ends with the end token where there is room for it. There is no augmentation.
        """
        chosen = [self.items[index] for index in indices.tolist()]
        template, cutoff = self._config.template, self._config.cutoff
        prompts = [training_prompt(item, template) for item in chosen]
        texts = self._processor.encode(
            [prompt + item.output for prompt, item in zip(prompts, chosen, strict=True)]
        )
        starts = [1] * len(chosen)
        if self._config.loss_on == "response":
            starts = [len(tokens) for tokens in self._processor.encode(prompts)]
        tokens = torch.full((len(chosen), cutoff), self._processor.end)
        scored = torch.zeros(len(chosen), cutoff, dtype=torch.bool)
        for row, (text, start) in enumerate(zip(texts, starts, strict=True)):
            whole = self._whole(text)
            tokens[row, : len(whole)] = torch.tensor(whole)
            scored[row, start : len(whole)] = True
        return {"tokens": tokens.to(self._device), "scored": scored.to(self._device)}

    def _whole(self, text: Sequence[int]) -> list[int]:
        cut, end = list(text[: self._config.cutoff]), self._processor.end
        return cut if len(cut) == self._config.cutoff or cut[-1:] == [end] else [*cut, end]


class Commonsense:
    """A task without a head: the language model's own loss, and the share of right answers.

    Args:
        data: The items.
        config: How they are shown and judged.
        processor: The model's tokenizer.
        device: Of the batches.
    """

    head_width = 0
    metric: str = "val_loss"
    direction: Direction = "minimize"

    def __init__(
        self, data: CommonsenseData, config: CommonsenseTask, processor: TextProcessor, device: torch.device
    ) -> None:
        self.data_hash = data.data_hash
        self._data, self._config, self._processor, self._device = data, config, processor, device
        self._search = Search(config.beams, config.new_tokens, config.eval_batch)
        self._splits: dict[SplitName, TextSplit] = {
            "train": TextSplit(data.train, config, processor, device),
            "val": TextSplit(data.val, config, processor, device),
            "test": TextSplit(
                [each for items in data.tests.values() for each in items], config, processor, device
            ),
        }

    def split(self, name: SplitName) -> TextSplit:
        """The named split; all test sets together are one."""
        return self._splits[name]

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Mean over each slot's own scored tokens: their losses `[K, B, T]` to `[K]`.

        With micro-batches, a step takes the mean of their means, as the published code does.
        """
        return output.sum(dim=(1, 2)) / batch["scored"].sum(dim=(1, 2)).clamp(min=1)

    def evaluate(self, forward: Forward, slots: int, split: SplitName) -> list[dict[str, float]]:
        """Metrics of every slot: `loss` (and `accuracy`, if asked for) on val, accuracies on test.

        On test: `accuracy_<set>` of each set, and `accuracy`, the mean over the sets.
        """
        if split == "test":
            return self._accuracies(forward, slots)
        losses = self._losses(forward, slots, self.split(split))
        metrics: list[dict[str, float]] = [{"loss": loss} for loss in losses]
        if self._config.val_answers:
            for found, right in zip(
                metrics, self._right(forward, slots, self.split(split).items), strict=True
            ):
                found["accuracy"] = right
        return metrics

    def _losses(self, forward: Forward, slots: int, examples: TextSplit) -> list[float]:
        """Mean loss of a token over a whole split."""
        total = torch.zeros(slots, dtype=torch.float64)
        count = 0
        for indices in torch.arange(len(examples)).split(self._config.eval_batch):
            batch = examples.take(indices, None)
            output = forward(for_every_slot(batch, slots))
            total += output.sum(dim=(1, 2)).double().cpu()
            count += int(batch["scored"].sum())
        return (total / max(count, 1)).tolist()

    def _accuracies(self, forward: Forward, slots: int) -> list[dict[str, float]]:
        metrics: list[dict[str, float]] = [{} for _ in range(slots)]
        for name, items in self._data.tests.items():
            for found, right in zip(metrics, self._right(forward, slots, items), strict=True):
                found[f"accuracy_{name}"] = right
        return [{**found, "accuracy": sum(found.values()) / len(found)} for found in metrics]

    def _right(self, forward: Forward, slots: int, items: Sequence[Item]) -> list[float]:
        """Share of right answers of each slot."""
        prompts = [evaluation_prompt(item, self._config.template) for item in items]

        def on_device(batch: Batch) -> Tensor:
            return forward({name: each.to(self._device) for name, each in batch.items()})

        texts = generate(on_device, slots, prompts, self._processor, self._search)
        return [
            sum(is_right(text, item) for text, item in zip(own, items, strict=True)) / len(items)
            for own in texts
        ]


def commonsense_task(
    config: CommonsenseTask, processor: TextProcessor | None, device: torch.device
) -> Commonsense:
    """The task for a language model.

    Raises:
        DataError: If the data is not as `read_commonsense` wants it.
        ConfigError: If the backbone has no tokenizer.
    """
    tokenizer = tokenizer_for(config.name, processor, "language model", "a llama")
    return Commonsense(read_commonsense(config), config, tokenizer, device)
