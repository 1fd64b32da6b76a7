"""Learned keys and values beside an attention's own, for K slots at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Prefix"]


@dataclass
class Prefix:
    """What one attention sees beside its own tokens; nothing until keys and values are put in.

    They stand behind the tokens and in no cache. Slots with fewer of them are padded with dead ones,
    which no query sees.

    Attributes:
        key: `[K, H, P, D]`, H the heads of keys and values, D their width.
        value: Likewise.
        lengths: Living tokens of each slot.
    """

    key: Tensor
    value: Tensor
    lengths: tuple[int, ...]

    def beside(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values `[rows, H, T + P, D]` of tokens `[rows, H, T, D]`, rows slot by slot."""
        return _joined(key, self.key), _joined(value, self.value)

    def mask(self, mask: Tensor | None, shape: tuple[int, int, int], *, causal: bool) -> Tensor | None:
        """Who sees whom, `[1 or rows, 1, Q, T + P]`, or None where every query sees all.

        Args:
            mask: Of the tokens alone, `[1 or rows, 1, Q, T]`: boolean, or added to the scores.
            shape: Rows, queries Q and keys T, without the prefix; the queries are the last of the keys.
            causal: Whether a query sees no later key, where `mask` is None.
        """
        rows, queries, keys = shape
        causal = causal and mask is None and queries > 1
        if mask is None and not causal and min(self.lengths) == self.key.shape[2]:
            return None
        if mask is None:
            mask = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=self.key.device)
            mask = mask.tril(keys - queries) if causal else mask
        live = self._live(rows, mask.dtype)
        wanted = max(mask.shape[0], live.shape[0])
        parts = [part.expand(wanted, 1, queries, -1) for part in (mask, live)]
        return torch.cat(parts, 3)

    def _live(self, rows: int, dtype: torch.dtype) -> Tensor:
        """Which tokens of the prefix are seen, `[1 or rows, 1, 1, P]`, in the form of a mask of a type."""
        lengths = torch.tensor(self.lengths, device=self.key.device)
        if len(set(self.lengths)) == 1:
            lengths, rows = lengths[:1], 1
        lengths = lengths.repeat_interleave(rows // len(lengths))
        live = torch.arange(self.key.shape[2], device=lengths.device) < lengths.view(-1, 1, 1, 1)
        if dtype == torch.bool:
            return live
        return torch.zeros(live.shape, dtype=dtype, device=live.device).masked_fill(~live, -torch.inf)


def _joined(tokens: Tensor, prefix: Tensor) -> Tensor:
    """`[K * B, H, T, D]` and `[K, H, P, D]` to `[K * B, H, T + P, D]`."""
    rows, slots = tokens.shape[0], prefix.shape[0]
    own = tokens.view(slots, rows // slots, *tokens.shape[1:])
    shared = prefix.unsqueeze(1).expand(-1, rows // slots, -1, -1, -1)
    return torch.cat([own, shared], 3).flatten(0, 1)
