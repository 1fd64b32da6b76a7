"""From source texts, with or without pictures, to target texts: BART's and VL-BART's kind of task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from replora.config import TextToTextTask
from replora.errors import DataError
from replora.tasks.base import (
    Batch,
    Direction,
    Forward,
    SplitName,
    TextProcessor,
    for_every_slot,
    tokenizer_for,
)
from replora.tasks.pairs import Pair, PairData, Visual, read_pairs

__all__ = ["PairSplit", "TextToText", "text_to_text_task"]


class PairSplit:
    """Items as sources and targets, tokenized when taken.

    Every batch has the same widths: they must not depend on which items meet in a pack, because dropout
    draws one number per place.

    Args:
        pairs: The items.
        config: Lengths.
        processor: The model's tokenizer.
        visual: Visual features, where the task has any.
        device: Of the batches.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        config: TextToTextTask,
        processor: TextProcessor,
        visual: Visual | None,
        device: torch.device,
    ) -> None:
        self.pairs = pairs
        self._config, self._processor, self._visual, self._device = config, processor, visual, device

    def __len__(self) -> int:
        return len(self.pairs)

    def take(self, indices: Tensor, generator: torch.Generator | None) -> dict[str, Tensor]:
        """`source [B, S]` with its `mask`, `target [B, T]` with `scored`, the tokens that count.

        Both are padded on the right, and what is too long is cut before its end token. With visual
        features also `visual [B, V, F]`, `boxes [B, V, 4]`, `image [B, V]` and `visual_mask [B, V]`.
        There is no augmentation.
        """
        chosen = [self.pairs[index] for index in indices.tolist()]
        source, mask = self._tokens([pair.source for pair in chosen], self._config.source_tokens)
        target, scored = self._tokens([pair.target for pair in chosen], self._config.target_tokens)
        batch = {"source": source, "mask": mask.long(), "target": target, "scored": scored}
        if self._visual is not None:
            parts = [self._visual.take(pair.visual, self._config.visual_tokens) for pair in chosen]
            batch |= {name: torch.stack([part[name] for part in parts]) for name in parts[0]}
        return {name: each.to(self._device) for name, each in batch.items()}

    def _tokens(self, texts: Sequence[str], width: int) -> tuple[Tensor, Tensor]:
        end = self._processor.end
        tokens = torch.full((len(texts), width), end)
        real = torch.zeros(len(texts), width, dtype=torch.bool)
        for row, found in enumerate(self._processor.encode(texts)):
            whole = list(found) if len(found) <= width else [*found[: width - 1], end]
            tokens[row, : len(whole)] = torch.tensor(whole)
            real[row, : len(whole)] = True
        return tokens, real


class TextToText:
    """A task without a head: the model's own loss, and the share of targets written word for word.

    Args:
        data: The items.
        config: Lengths and search.
        processor: The model's tokenizer.
        device: Of the batches.
    """

    head_width = 0
    metric: str = "val_loss"
    direction: Direction = "minimize"

    def __init__(
        self, data: PairData, config: TextToTextTask, processor: TextProcessor, device: torch.device
    ) -> None:
        self.data_hash = data.data_hash
        self._config, self._processor = config, processor
        self._splits: Mapping[SplitName, PairSplit] = {
            name: PairSplit(pairs, config, processor, data.visual, device)
            for name, pairs in data.splits.items()
        }

    def split(self, name: SplitName) -> PairSplit:
        """The named split.

        Raises:
            DataError: If there is no file of it.
        """
        if not self._splits[name].pairs:
            raise DataError(f"the task has no {name} split: add {name}.jsonl to task.root.")
        return self._splits[name]

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Mean over each slot's own scored tokens: their losses `[K, B, T]` to `[K]`."""
        return output.sum(dim=(1, 2)) / batch["scored"].sum(dim=(1, 2)).clamp(min=1)

    def evaluate(self, forward: Forward, slots: int, split: SplitName) -> list[dict[str, float]]:
        """Metrics of every slot: `loss` of a token; on test, and if asked for on val, also `accuracy`."""
        examples = self.split(split)
        losses, right = torch.zeros(slots, dtype=torch.float64), [0] * slots
        answers = split == "test" or self._config.val_answers
        tokens = 0
        for indices in torch.arange(len(examples)).split(self._config.eval_batch):
            batch = examples.take(indices, None)
            losses += forward(for_every_slot(batch, slots)).sum(dim=(1, 2)).double().cpu()
            tokens += int(batch["scored"].sum())
            wanted = [examples.pairs[index].target.strip() for index in indices.tolist()]
            for slot, texts in enumerate(self._answers(forward, slots, batch) if answers else ()):
                right[slot] += sum(text == target for text, target in zip(texts, wanted, strict=True))
        means = (losses / tokens).tolist()
        if not answers:
            return [{"loss": loss} for loss in means]
        return [{"loss": loss, "accuracy": n / len(examples)} for loss, n in zip(means, right, strict=True)]

    def _answers(self, forward: Forward, slots: int, batch: Batch) -> list[list[str]]:
        """What each slot writes for the sources of a batch, `K` lists of `B` texts."""
        given = {name: each for name, each in batch.items() if name not in ("target", "scored")}
        rows = len(batch["source"])
        given["beams"] = torch.full((rows,), self._config.beams, device=batch["source"].device)
        given["new_tokens"] = torch.full_like(given["beams"], self._config.target_tokens)
        found = forward(for_every_slot(given, slots)).tolist()
        return [[text.strip() for text in self._processor.decode(tokens)] for tokens in found]


def text_to_text_task(
    config: TextToTextTask, processor: TextProcessor | None, device: torch.device
) -> TextToText:
    """The task for a BART.

    Raises:
        DataError: If the data is not as `read_pairs` wants it.
        ConfigError: If the backbone has no tokenizer.
    """
    tokenizer = tokenizer_for(config.name, processor, "model", "bart-base")
    return TextToText(read_pairs(config), config, tokenizer, device)
