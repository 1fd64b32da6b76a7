"""Learned keys and values beside an attention's own, for K slots at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Prefix", "Sight"]


@dataclass(frozen=True)
class Prefix:
    """What one attention sees beside its own tokens.

    They stand behind the tokens and in no cache. Slots with fewer of them are padded with dead ones,
    which no query sees.

    Attributes:
        key: `[K, H, P, D]`, H the heads of keys and values, D their width.
        value: Likewise.
        sight: Who sees whom; the same for all attentions.
    """

    key: Tensor
    value: Tensor
    sight: Sight

    def beside(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values `[rows, H, T + P, D]` of tokens `[rows, H, T, D]`, rows slot by slot."""
        return _joined(key, self.key), _joined(value, self.value)


class Sight:
    """Who sees whom in attentions with prefixes; what it made last is kept for the next attention.

    Args:
        lengths: Living tokens of each slot's prefix.
        tokens: Tokens of every prefix, padding included, P.
    """

    def __init__(self, lengths: tuple[int, ...], tokens: int) -> None:
        self.lengths = lengths
        self._tokens = tokens
        self._asked: tuple[object, ...] = ()
        self._given: Tensor | None = None
        self._made: Tensor | None = None

    def mask(
        self, query: Tensor, keys: int, mask: Tensor | None = None, causal: bool = False
    ) -> Tensor | None:
        """What is added to scores, `[1 or rows, 1, 1 or Q, T + P]`; None where every query sees all.

        Args:
            query: `[rows, H, Q, D]`, the last ones of the T tokens.
            keys: T, without the prefix.
            mask: Of the tokens alone, `[1 or rows, 1, Q, T]`: what is seen, or what is added to scores.
            causal: Whether a query sees no later token, where `mask` is None.
        """
        rows, queries = query.shape[0], query.shape[2]
        asked = (rows, queries, keys, causal, query.dtype, query.device)
        if self._asked != asked or self._given is not mask:
            self._asked, self._given = asked, mask
            if mask is None and causal and queries > 1:
                mask = query.new_ones(1, 1, queries, keys, dtype=torch.bool).tril(keys - queries)
            self._made = self._make(query, keys, mask)
        return self._made

    def _make(self, query: Tensor, keys: int, mask: Tensor | None) -> Tensor | None:
        if mask is None and min(self.lengths) == self._tokens:
            return None
        if mask is None:
            mask = query.new_ones(1, 1, 1, keys, dtype=torch.bool)
        parts = [_added(part, query.dtype) for part in (mask, self._live(query))]
        shape = [max(sizes) for sizes in zip(*(part.shape[:3] for part in parts), strict=True)]
        return torch.cat([part.expand(*shape, -1) for part in parts], 3)

    def _live(self, query: Tensor) -> Tensor:
        """Which tokens of the prefixes are seen, `[1 or rows, 1, 1, P]`."""
        alike = len(set(self.lengths)) == 1
        lengths = torch.tensor(self.lengths[:1] if alike else self.lengths, device=query.device)
        if not alike:
            lengths = lengths.repeat_interleave(query.shape[0] // len(lengths))
        return torch.arange(self._tokens, device=query.device) < lengths.view(-1, 1, 1, 1)


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as it is added to scores."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, -torch.inf)


def _joined(tokens: Tensor, prefix: Tensor) -> Tensor:
    """`[K * B, H, T, D]` and `[K, H, P, D]` to `[K * B, H, T + P, D]`."""
    rows, slots = tokens.shape[0], prefix.shape[0]
    own = tokens.view(slots, rows // slots, *tokens.shape[1:])
    shared = prefix.unsqueeze(1).expand(-1, rows // slots, -1, -1, -1)
    return torch.cat([own, shared], 3).flatten(0, 1)
