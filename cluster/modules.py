"""Bytes of what is added to a base beside its weights: bottleneck adapters and prefixes.

Saved for the backward pass, per token and block, with m the bottleneck, P a prefix's tokens, T an example's:

    adapter     what it reads (in series the linear's output, which nothing else keeps) and its hidden
                layer: m, twice with GELU; with dropout the mask and the dropped copy instead of what it reads
    prefix      2 d P / T for its keys and values beside the tokens', and H P where attention is not fused;
                once for all blocks, what is added to the scores: T (T + P) per example (causal, once for
                all examples)
"""

from __future__ import annotations

from cluster.anatomy import Anatomy
from replora.config import AdapterMethod, MethodConfig, PrefixMethod
from replora.parameters import trainable_parameters

__all__ = ["adapter_numbers", "made_numbers", "mask_numbers", "prefix_numbers"]

#: Linears that read one tensor; the first three are one linear in a ViT.
_SHARED = {"query": "norm1", "key": "norm1", "value": "norm1", "gate": "norm2", "up": "norm2"}


def adapter_numbers(method: AdapterMethod, anatomy: Anatomy) -> int:
    """Numbers that one token leaves in one block, the base's own activations not counted."""
    chosen = [t for t in anatomy.targets if t.block == 0 and t.name in method.targets]
    hidden = method.bottleneck * (2 if method.activation == "gelu" else 1) * len(chosen)
    if method.dropout > 0:
        reads = [t.outputs if method.form == "series" else t.inputs for t in chosen]
        return hidden + 2 * sum(reads)
    if method.form == "parallel":
        read = {_SHARED.get(t.name, t.name): t.inputs for t in chosen}
        if anatomy.fused_attention:
            read.pop("output", None)  # attention's own output, which it keeps anyway
        return hidden + sum(read.values())
    fused = anatomy.family != "llama"
    written = {"qkv" if fused and _SHARED.get(t.name) == "norm1" else t.name: t.outputs for t in chosen}
    if "qkv" in written:
        written["qkv"] *= 3  # a slice keeps the whole
    return hidden + sum(written.values())


def prefix_numbers(method: PrefixMethod, anatomy: Anatomy, rows: int) -> int:
    """Numbers that the prefixes add to what `rows` tokens leave in one block's attention."""
    scores = 0 if anatomy.fused_attention else rows * anatomy.heads * method.tokens
    return scores + -(-2 * rows * method.tokens * anatomy.width // (anatomy.tokens or rows))


def mask_numbers(method: PrefixMethod, anatomy: Anatomy) -> int:
    """Numbers of the scores' mask, which all blocks share; prefixes of equal lengths."""
    tokens = anatomy.tokens or 0
    return tokens * (tokens + method.tokens) if anatomy.family == "llama" else 0


def made_numbers(method: MethodConfig, anatomy: Anatomy) -> int:
    """Numbers that the layers read of one slot: adapters times their scale, keys and values of prefixes."""
    if isinstance(method, PrefixMethod):
        method = method.model_copy(update={"made": "direct"})
    elif not isinstance(method, AdapterMethod):
        return 0
    return trainable_parameters(method, anatomy.targets, 0)
