"""Bytes that the backward pass keeps, per token and block: the tensors that autograd saves here.

A frozen linear saves nothing (its weight has no gradient); an adapted one saves its input and the
`[tokens, rank]` inner activations (replora.methods.layer). In numbers of the base's precision, with
d the width, i the MLP's width, H heads:

    LLaMA   2 norms: 2 d in fp32;  attention q, k, v, out: 4 d, its log-sums: H in fp32;  SwiGLU: 3 i
            (in bf16, q and v adapted: 8 d + 8 d + 2 d + 6 i = 18 d + 6 i bytes)
    ViT     2 norms: 2 d and 4 statistics in fp32;  attention: 4 d and H, or 3 d and H T where it is not
            fused;  GELU: i

Keys and values are counted at the width of the queries: with grouped queries they are repeated where
the kernel does not take groups, so this is an upper bound there.
"""

from __future__ import annotations

from cluster.anatomy import BYTES, Anatomy
from cluster.modules import adapter_numbers, mask_numbers, prefix_numbers
from replora.config import (
    AdapterMethod,
    FullMethod,
    LinearProbeMethod,
    LowRankMethod,
    PrefixMethod,
    RunConfig,
)

__all__ = ["activation_bytes", "layer_bytes", "logit_bytes"]


#: Linears that read one and the same tensor.
_INPUT_OF = {"query": "norm1", "key": "norm1", "value": "norm1", "output": "attention"} | {
    "gate": "norm2",
    "up": "norm2",
    "down": "mlp",
}
#: Methods whose weight-decomposed layers hold twice the activations (measured on PEFT's DoRA).
_DECOMPOSED = {"dora": 2, "doran": 2}


def activation_bytes(config: RunConfig, anatomy: Anatomy, rows: int, *, recompute: bool) -> int:
    """What a forward pass of `rows` tokens leaves for the backward pass.

    With recomputation: each block's input, and everything of one block at a time.
    """
    if isinstance(config.method, LinearProbeMethod):
        return 0  # the base runs without a graph
    b, layer = BYTES[config.train.precision], layer_bytes(config, anatomy, rows)
    shared = b * mask_numbers(config.method, anatomy) if isinstance(config.method, PrefixMethod) else 0
    if not recompute:
        return anatomy.depth * layer + shared - rows * _unreached(config, anatomy)
    inputs = b * anatomy.width * rows
    return min(anatomy.depth * inputs + layer, anatomy.depth * layer) + shared


def layer_bytes(config: RunConfig, anatomy: Anatomy, rows: int) -> int:
    """What one block saves for `rows` tokens."""
    b = BYTES[config.train.precision]
    norm, attention, mlp = _own(anatomy, b)
    own = 2 * norm + attention + mlp
    if isinstance(config.method, PrefixMethod):
        return rows * own + b * prefix_numbers(config.method, anatomy, rows)
    factor = _DECOMPOSED.get(config.method.name, 1)
    return rows * factor * (own + _adapted(config, anatomy, b))


def logit_bytes(config: RunConfig, anatomy: Anatomy, rows: int) -> int:
    """Logits, their fp32 copy and its gradient: about 10 V a token in bf16 (measured)."""
    return (BYTES[config.train.precision] + 8) * anatomy.vocabulary * rows


def _own(anatomy: Anatomy, b: int) -> tuple[int, int, int]:
    """What each norm, the attention and the MLP of a block keep of a token."""
    d, heads, fp32 = anatomy.width, anatomy.heads, max(b, 4)
    if anatomy.family == "llama":
        return fp32 * d + fp32, b * 4 * d + 4 * heads, b * 3 * anatomy.hidden
    if anatomy.fused_attention:
        attention = b * 4 * d + fp32 * heads
    else:
        attention = b * (3 * d + heads * (anatomy.tokens or 1))
    return b * d + 2 * fp32, attention, b * anatomy.hidden


def _unreached(config: RunConfig, anatomy: Anatomy) -> int:
    """What the first block does not keep, per token, because nothing trains before its first target.

    Its first norm is not counted: the model's last one, which `layer_bytes` leaves out, keeps as much.
    """
    method, b = config.method, BYTES[config.train.precision]
    norm, attention, mlp = _own(anatomy, b)
    if isinstance(method, PrefixMethod) and not anatomy.fused_attention:
        tokens = anatomy.tokens or 1
        return b * anatomy.width * (tokens + method.tokens) // tokens  # keys, kept for the queries alone
    names = {*getattr(method, "targets", ()), *getattr(method, "plain_targets", ())}
    if not names or {"query", "key", "value"} & names:
        return 0
    if "output" in names:
        return attention
    if not {"gate", "up"} & names:
        return attention + norm + mlp
    gated = {"gate", "up"} - names if anatomy.family == "llama" else set()
    return attention + norm + sum({"gate": 2, "up": 1}[name] * mlp // 3 for name in gated)


def _adapted(config: RunConfig, anatomy: Anatomy, b: int) -> int:
    """Inputs and inner activations of what trains, per token.

    Linears on one tensor share it; with dropout each linear keeps its own dropped copy and mask.
    """
    method = config.method
    if isinstance(method, AdapterMethod):
        return b * adapter_numbers(method, anatomy)
    names, rank, dropout = tuple(_INPUT_OF), 0, False
    if isinstance(method, LowRankMethod):
        names = (*method.targets, *getattr(method, "plain_targets", ()))
        rank, dropout = method.rank, method.dropout > 0
    block = {target.name: target for target in anatomy.targets if target.block == 0}
    chosen = [target for name, target in block.items() if name in names]
    inner = rank * len(chosen)
    if isinstance(method, FullMethod) and anatomy.family == "llama":
        inner += 2 * anatomy.width  # a norm whose scale trains keeps what it scales
    if not dropout:
        inputs = {_INPUT_OF.get(target.name, target.name): target.inputs for target in chosen}
        if anatomy.fused_attention:
            inputs.pop("attention", None)  # attention's own output, which it keeps anyway
        return b * (inner + sum(inputs.values()))
    modules = {_module(anatomy, target.name): target.inputs for target in chosen}
    return b * (inner + 2 * sum(modules.values()))


def _module(anatomy: Anatomy, target: str) -> str:
    """A ViT's query, key and value are rows of one linear."""
    return _INPUT_OF[target] if anatomy.family == "vit" and _INPUT_OF.get(target) == "norm1" else target
