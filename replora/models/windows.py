"""Video Swin's attention with its linears called as modules, so that adapters on them are heard.

torchvision reads `qkv.weight` and `proj.weight` and multiplies by itself: a module put in their place
is silently ignored. `WindowAttention` has the same weights under the same names and computes the same
to the last bit, but calls `qkv` and `proj`. The batch stays the leading axis throughout, so rows of a
pack reach both slot by slot.

Shape letters: N batch, P windows of one example, M tokens of a window, H heads, C features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.swin_transformer import SwinTransformerBlock
from torchvision.models.video.swin_transformer import ShiftedWindowAttention3d

from replora.models.prefix import Prefix

__all__ = ["WindowAttention", "attend_in_windows", "call_linears"]

_APART = -100.0  # known: added to the score of two tokens that a shift brought into one window


def call_linears(model: nn.Module) -> None:
    """Puts a `WindowAttention` on the same weights in place of every attention of a Video Swin."""
    for module in model.modules():
        if isinstance(module, SwinTransformerBlock):
            assert isinstance(module.attn, ShiftedWindowAttention3d)
            module.attn = WindowAttention(module.attn)


def attend_in_windows(model: nn.Module, prefixes: Mapping[str, Prefix]) -> None:
    """Makes every window of a private Video Swin see the prefix of its block (`Backbone.attend`)."""
    for path, module in model.named_modules():
        if isinstance(module, WindowAttention):
            module.find_prefix = partial(prefixes.__getitem__, path)


class WindowAttention(nn.Module):
    """Attention within windows, which every second block shifts by half a window [1].

    A window is no larger than its input, and an axis that fits one window is not shifted. Dropout is
    off: the base stays in evaluation mode.

    Args:
        attention: Whose weights and sizes it takes over.

    References:
        [1] Liu et al., "Video Swin Transformer", CVPR 2022.
    """

    relative_position_index: Tensor

    def __init__(self, attention: ShiftedWindowAttention3d) -> None:
        super().__init__()
        self.qkv, self.proj = attention.qkv, attention.proj
        self.relative_position_bias_table = attention.relative_position_bias_table
        self.register_buffer("relative_position_index", attention.relative_position_index)
        self.num_heads = attention.num_heads
        self._window, self._shift = tuple(attention.window_size), tuple(attention.shift_size)
        self.find_prefix: Callable[[], Prefix] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """`[N, T, H, W, C]` to the same."""
        sizes = x.shape[1:4]
        window = tuple(min(size, most) for size, most in zip(sizes, self._window, strict=True))
        shift = tuple(
            0 if size <= most else by for size, most, by in zip(sizes, self._window, self._shift, strict=True)
        )
        missing = [-size % length for size, length in zip(sizes, window, strict=True)]
        padded = functional.pad(x, (0, 0, 0, missing[2], 0, missing[1], 0, missing[0]))
        whole = tuple(padded.shape[1:4])
        if any(shift):
            padded = padded.roll([-by for by in shift], (1, 2, 3))
        apart = _apart(whole, window, shift).to(x) if any(shift) else None
        found = _joined(self._attend(_cut(padded, window), apart), whole, window)
        if any(shift):
            found = found.roll(shift, (1, 2, 3))
        return found[:, : sizes[0], : sizes[1], : sizes[2]].contiguous()

    def _attend(self, windows: Tensor, apart: Tensor | None) -> Tensor:
        """Attention within each of `[N * P, M, C]`; `apart [P, M, M]` is added to the scores."""
        rows, tokens, width = windows.shape
        parts = self.qkv(windows).view(rows, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        mask = None
        if self.find_prefix is not None:
            prefix = self.find_prefix()
            key, value = prefix.beside(key, value)
            mask = prefix.sight.mask(query, tokens)
        beside = (0, key.shape[2] - tokens)  # a prefix is at no distance, and in every window's own region
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        scores = scores + functional.pad(self._position_bias(tokens), beside)
        if apart is not None:
            scores = scores.unflatten(0, (-1, len(apart))) + functional.pad(apart, beside).unsqueeze(1)
            scores = scores.flatten(0, 1)
        scores = scores if mask is None else scores + mask
        mixed = scores.softmax(-1) @ value
        found: Tensor = self.proj(mixed.transpose(1, 2).reshape(rows, tokens, width))
        return found

    def _position_bias(self, tokens: int) -> Tensor:
        """`[1, H, M, M]`; a window smaller than the full one reads the index's first corner (known)."""
        index = self.relative_position_index[:tokens, :tokens].flatten()
        bias: Tensor = self.relative_position_bias_table[index].view(tokens, tokens, -1)
        return bias.permute(2, 0, 1).unsqueeze(0)


def _cut(x: Tensor, window: Sequence[int]) -> Tensor:
    """`[N, T, H, W, C]` into windows, `[N * P, M, C]`."""
    for axis in (3, 2, 1):
        x = x.unflatten(axis, (-1, window[axis - 1]))
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4, 6).flatten(0, 3)


def _joined(windows: Tensor, whole: Sequence[int], window: Sequence[int]) -> Tensor:
    """Windows `[N * P, M, C]` back into `[N, T, H, W, C]`."""
    counts = [size // length for size, length in zip(whole, window, strict=True)]
    x = windows.view(-1, *counts, *window, windows.shape[-1]).permute(0, 1, 4, 2, 5, 3, 6, 7)
    return x.reshape(-1, *whole, windows.shape[-1])


@lru_cache(maxsize=32)
def _apart(whole: tuple[int, ...], window: tuple[int, ...], shift: tuple[int, ...]) -> Tensor:
    """`[P, M, M]`: zero for tokens of one window that were neighbours before the shift."""
    region = torch.zeros(1, *whole, 1)
    for axis, (size, length, by) in enumerate(zip(whole, window, shift, strict=True)):
        place = torch.arange(size)
        own = (place >= size - length).int() + (place >= size - by).int() if by else torch.zeros(size)
        region = 3 * region + own.view([-1 if each == axis + 1 else 1 for each in range(5)])
    tokens = _cut(region, window).squeeze(-1)
    return torch.where(tokens.unsqueeze(1) == tokens.unsqueeze(2), 0.0, _APART)
