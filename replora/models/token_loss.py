"""Cross-entropy of tokens from hidden states, without ever holding the logits of a whole batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

__all__ = ["token_losses"]

#: Tokens whose logits exist at once (choice): with 32,000 words, 256 MiB in fp32.
CHUNK = 2048


def token_losses(hidden: Tensor, weight: Tensor, tokens: Tensor, scored: Tensor) -> Tensor:
    """Loss of each scored token given the tokens before it, 0 elsewhere.

        loss[b, t] = -log softmax(W hidden[b, t - 1])[tokens[b, t]]      where scored[b, t]

    The head runs on scored tokens only, `CHUNK` at a time, and again in the backward pass, so memory
    does not grow with the length of the batch.

    Args:
        hidden: Last hidden states, `[B, T, D]`.
        weight: Of the language head, `[V, D]`.
        tokens: `[B, T]`.
        scored: Which tokens count, `[B, T]`; the first token has nothing before it and never counts.

    Returns:
        `[B, T]`, in fp32 (fp64 for hidden states in fp64).
    """
    places = scored[:, 1:].flatten().nonzero().squeeze(1)
    states = hidden[:, :-1].flatten(0, 1).index_select(0, places)
    targets = tokens[:, 1:].flatten().index_select(0, places)
    parts = [
        checkpoint(_losses, states_part, weight, targets_part, use_reentrant=False, preserve_rng_state=False)
        for states_part, targets_part in zip(states.split(CHUNK), targets.split(CHUNK), strict=True)
    ]
    precise = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    losses = torch.zeros(scored[:, 1:].numel(), dtype=precise, device=hidden.device)
    losses = losses.index_copy(0, places, torch.cat(parts))
    return F.pad(losses.view(scored[:, 1:].shape), (1, 0))


def _losses(states: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    logits = F.linear(states, weight)
    if logits.dtype == torch.bfloat16:
        logits = logits.float()
    return F.cross_entropy(logits, targets, reduction="none")
