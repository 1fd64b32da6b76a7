"""Answers of every slot of a pack to the same prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from replora.tasks.base import Forward, TextProcessor, for_every_slot

__all__ = ["Search", "generate"]


@dataclass(frozen=True)
class Search:
    """How answers are searched for.

    Attributes:
        beams: 1 is greedy.
        new_tokens: Longest answer.
        batch: Prompts per slot at once.
    """

    beams: int
    new_tokens: int
    batch: int


def generate(
    forward: Forward, slots: int, prompts: Sequence[str], processor: TextProcessor, search: Search
) -> list[list[str]]:
    """Generated texts: one list a slot, in the order of the prompts.

    Prompts of like length go together, so that little is spent on padding.

    Args:
        forward: Runs the model of every slot; it is given prompts and gives generated tokens.
        slots: Number of slots, K.
        prompts: The same for every slot.
        processor: The model's tokenizer.
        search: Beams, length and batch.
    """
    encoded = [_open(tokens, processor.end) for tokens in processor.encode(prompts)]
    order = sorted(range(len(prompts)), key=lambda index: len(encoded[index]))
    texts = [[""] * len(prompts) for _ in range(slots)]
    for start in range(0, len(order), search.batch):
        chosen = order[start : start + search.batch]
        batch = _prompts([encoded[index] for index in chosen], processor.end, search)
        tokens = forward(for_every_slot(batch, slots))
        for slot, answers in enumerate(tokens.tolist()):
            for index, text in zip(chosen, processor.decode(answers), strict=True):
                texts[slot][index] = text
    return texts


def _open(tokens: Sequence[int], end: int) -> Sequence[int]:
    """A prompt to go on from: some tokenizers end every text."""
    return tokens[:-1] if tokens[-1:] == [end] else tokens


def _prompts(encoded: Sequence[Sequence[int]], filler: int, search: Search) -> dict[str, Tensor]:
    """Prompts padded on the left, `[B, T]`, with how to go on from them."""
    longest = max(map(len, encoded))
    rows = len(encoded)
    return {
        "prompt": torch.tensor([[filler] * (longest - len(tokens)) + list(tokens) for tokens in encoded]),
        "mask": torch.tensor([[0] * (longest - len(tokens)) + [1] * len(tokens) for tokens in encoded]),
        "beams": torch.full((rows,), search.beams),
        "new_tokens": torch.full((rows,), search.new_tokens),
    }
