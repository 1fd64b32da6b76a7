"""Prefixes in transformers' models: an attention function, and tokens that begin later."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from replora.models.prefix import Prefix

__all__ = ["transformer_attend"]

_NAME = "replora_prefix"


def transformer_attend(model: nn.Module, prefixes: Mapping[str, Prefix]) -> None:
    """Makes every attention of a private model see the prefix under its path (`Backbone.attend`).

    Keys and values of the prefix join those of the tokens in each call of the attention, after rotation
    and cache, so that training and generation see the same and the cache holds tokens alone. Where keys
    are rotated, tokens begin behind the prefix; positions that are learned stay as they are.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(_NAME, _attention)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    for path, module in model.named_modules():
        if hasattr(module, "k_proj"):
            module.find_prefix = partial(prefixes.__getitem__, path)
        if hasattr(module, "config"):
            config: Any = module.config
            config._attn_implementation = _NAME
    decoder = getattr(model, "model", model)
    if hasattr(decoder, "rotary_emb"):
        decoder.register_forward_pre_hook(partial(_begin_later, prefixes), with_kwargs=True)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Scaled dot products over tokens and prefix, `[rows, H, Q, D]` to `[rows, Q, H, D]`."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    prefix: Prefix = module.find_prefix()  # type: ignore[operator]
    causal = options.pop("is_causal", None)
    causal = bool(getattr(module, "is_causal", True)) if causal is None else causal
    mask = prefix.sight.mask(query, key.shape[2], mask, causal=causal)
    key, value = prefix.beside(key, value)
    return sdpa_attention_forward(module, query, key, value, mask, is_causal=False, **options)


def _begin_later(
    prefixes: Mapping[str, Prefix], module: nn.Module, args: tuple[Any, ...], options: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Shifts each slot's positions by the length of its prefix."""
    lengths = next(iter(prefixes.values())).sight.lengths
    given = (*args[:1], options.get("input_ids"), options.get("inputs_embeds"))
    inputs = next(each for each in given if each is not None)
    positions = options.get("position_ids")
    if positions is None:
        cache = options.get("past_key_values")
        seen = 0 if cache is None else cache.get_seq_length()
        positions = torch.arange(seen, seen + inputs.shape[1], device=inputs.device).unsqueeze(0)
    shifts = torch.tensor(lengths[:1] if len(set(lengths)) == 1 else lengths, device=inputs.device)
    if len(shifts) > 1:
        shifts = shifts.repeat_interleave(len(inputs) // len(shifts))
    return args, {**options, "position_ids": positions + shifts.unsqueeze(1)}
