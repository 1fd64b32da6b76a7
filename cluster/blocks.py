"""Bytes that one layer of a backbone keeps of a pass for the backward pass.

A frozen linear saves nothing (its weight has no gradient); an adapted one saves its input and, where it
is narrow, the `[tokens, rank]` inner activations (replora.methods.layer). In numbers of the base's
precision, with d the width, i the MLP's width, H heads, M the keys in a row of the scores:

    LLaMA   2 norms: 2 d in fp32;  attention q, k, v, out: 4 d, its log-sums: H in fp32;  SwiGLU: 3 i
            (in bf16, q and v adapted: 8 d + 8 d + 2 d + 6 i = 18 d + 6 i bytes)
    ViT     2 norms: 2 d and 4 statistics in fp32;  attention: 4 d and H, or 3 d and H M where it is not
            fused (short ViTs on a CPU; Video Swin, with M a window, and all of attention on padded
            windows);  GELU: i. In the last layer one norm, the inputs of q, k and v and these three are of
            all tokens (k and v alone beside a prefix), everything else of the class token
    BART    an encoder layer as a ViT's with its attention fused; a decoder layer has two attentions and 3
            norms, and the cross attention keeps k and v of the encoder's tokens. Masks of the scores: one
            number a query and key, made anew in each layer

Keys and values are counted at the width of the queries: with grouped queries they are repeated where
the kernel does not take groups, so this is an upper bound there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeGuard

from cluster.stages import Pass, Stage
from replora.config import (
    AdapterMethod,
    ComposedMethod,
    FullMethod,
    LinearProbeMethod,
    LowRankMethod,
    MethodConfig,
    PrefixMethod,
)
from replora.models.shapes import TargetShape

__all__ = ["layer_bytes", "reads_encoded", "unreached_bytes"]

#: Input features from which a low-rank layer makes its inner activations again instead of keeping them
#: (known: replora.methods.layer, where it is a choice).
_MADE_AGAIN = 256

#: Linears that read one and the same tensor.
_INPUT_OF = {"query": "norm1", "key": "norm1", "value": "norm1", "output": "attention"} | {
    "gate": "norm2",
    "up": "norm2",
    "down": "mlp",
}


def layer_bytes(method: MethodConfig, stage: Stage, b: int, n: Pass) -> int:
    """What one layer saves, with b bytes a number."""
    norm, attention, mlp = _own(stage, b, n)
    own = stage.norms * norm + attention + mlp
    if isinstance(method, PrefixMethod):
        unread = b * stage.width * n.keys if stage.kind == "last" else 0  # queries
        return own - unread + b * _prefixed(method, stage, n)
    if isinstance(method, AdapterMethod):
        return own + b * _bottlenecks(method, stage, n)
    return own + b * _adapted(method, stage, n)


def unreached_bytes(method: MethodConfig, stage: Stage, b: int, n: Pass) -> int:
    """What the first layer does not keep, because nothing trains before its first target.

    Its first norm is counted for a ViT alone: elsewhere the model's last one, which `layer_bytes` leaves
    out, keeps as much.
    """
    norm, attention, mlp = _own(stage, b, n)
    first = norm if stage.kind == "vit" and not isinstance(method, FullMethod) else 0
    if isinstance(method, PrefixMethod):
        keys = n.keys + n.groups * method.tokens
        return first + (b * stage.width * keys if stage.seen else 0)  # keys, kept for the queries alone
    names = _names(method)
    if not names or {"query", "key", "value"} & names:
        return first + b * _unread_masks(method, stage, n)
    if "output" in names:
        return first + attention
    if not {"gate", "up"} & names:
        return first + attention + norm + mlp
    gated = {"gate", "up"} - names if stage.kind == "llama" else set()
    return first + attention + norm + sum({"gate": 2, "up": 1}[name] * mlp // 3 for name in gated)


def reads_encoded(method: MethodConfig) -> bool:
    """Whether a decoder's cross attentions keep what the encoder gave: one tensor for all of them."""
    if isinstance(method, FullMethod):
        return True
    low_rank = isinstance(method, LowRankMethod) and (not method.dropout or _is_decomposed(method))
    parallel = isinstance(method, AdapterMethod) and method.form == "parallel"
    return (low_rank or parallel) and bool({"key", "value"} & _names(method))


def _own(stage: Stage, b: int, n: Pass) -> tuple[int, int, int]:
    """What a norm, the attention and the MLP of a layer keep whatever the method is."""
    d, fp32 = stage.width, max(b, 4)
    if stage.kind == "llama":
        attention = n.queries * (b * 4 * stage.attention_width + 4 * stage.heads)
        return n.tokens * fp32 * (d + 1), attention, n.tokens * b * 3 * stage.hidden
    if stage.kind == "last":
        scores = b * stage.heads * stage.seen or b * d + fp32 * stage.heads
        attention = n.keys * (b * 4 * d + 2 * fp32) + n.queries * scores
    elif stage.seen:
        attention = b * n.queries * (3 * d + stage.heads * stage.seen)
    else:
        attention = b * 2 * d * (n.queries + n.keys) + fp32 * stage.heads * n.queries
    if stage.kind in ("encoder", "cross"):
        attention += b * n.queries * n.keys // n.groups
    return n.tokens * (b * d + 2 * fp32), attention, b * stage.hidden * n.tokens


def _names(method: MethodConfig) -> set[str]:
    return {*getattr(method, "targets", ()), *getattr(method, "plain_targets", ())}


def _rows(stage: Stage, name: str, n: Pass) -> int:
    """Tokens that a target runs over; a ViT's query is rows of the linear of its keys."""
    if name in ("key", "value") or (name == "query" and stage.kind == "last"):
        return n.keys
    return n.queries if name in ("query", "output") else n.tokens


def _adapted(method: MethodConfig, stage: Stage, n: Pass) -> int:
    """Inputs and inner activations of what trains, in numbers.

    Linears on one tensor share it; with dropout each linear keeps its own dropped copy and mask, and, for
    the gradient of a magnitude, what it reads as well. Outputs are never kept: those that the gradient of a
    magnitude needs are made again.
    """
    if isinstance(method, LinearProbeMethod):
        return 0
    if isinstance(method, FullMethod):
        scaled = 2 * stage.width * n.tokens if stage.kind == "llama" else 0  # norms keep what they scale
        return scaled + _read_by(stage.targets, stage, n)
    assert isinstance(method, LowRankMethod), f"no such method: {method.name}"
    chosen = [target for target in stage.targets if target.name in _names(method)]
    narrow = [target for target in chosen if target.inputs < _MADE_AGAIN]
    inner = method.rank * sum(_rows(stage, target.name, n) for target in narrow)
    if not method.dropout:
        return inner + _read_by(chosen, stage, n)
    modules = {_module(stage, t.name): t.inputs * _rows(stage, t.name, n) for t in chosen}
    gained = [target for target in chosen if _is_decomposed(method) and target.name in method.targets]
    return inner + 2 * sum(modules.values()) + _read_by(gained, stage, n)


def _read_by(targets: Iterable[TargetShape], stage: Stage, n: Pass) -> int:
    """Numbers that linears read and nothing else keeps; what the encoder gave is counted elsewhere."""
    inputs = {_input_of(stage, t.name): t.inputs * _rows(stage, t.name, n) for t in targets}
    if not stage.seen:
        inputs.pop("attention", None)  # attention's own output, which it keeps anyway
    inputs.pop("encoded", None)
    return sum(inputs.values())


def _input_of(stage: Stage, name: str) -> str:
    encoded = stage.kind == "cross" and name in ("key", "value")
    return "encoded" if encoded else _INPUT_OF[name]


def _module(stage: Stage, name: str) -> str:
    """Query, key and value are rows of one linear in a ViT and in a Video Swin."""
    return _INPUT_OF[name] if _is_fused(stage) and _INPUT_OF[name] == "norm1" else name


def _is_fused(stage: Stage) -> bool:
    return stage.kind in ("vit", "last", "window")


def _is_decomposed(method: MethodConfig) -> TypeGuard[ComposedMethod]:
    return isinstance(method, ComposedMethod) and method.composition != "additive"


def _unread_masks(method: MethodConfig, stage: Stage, n: Pass) -> int:
    """Masks of the dropped copies of what needs no gradient: what the first layer's attention reads."""
    if not isinstance(method, LowRankMethod) or not method.dropout:
        return 0
    names = _names(method) & {"query", "key", "value"}
    return stage.width * sum({_module(stage, name): _rows(stage, name, n) for name in names}.values())


def _bottlenecks(method: AdapterMethod, stage: Stage, n: Pass) -> int:
    """What adapters of width m read, and their hidden layers: m, twice with GELU.

    In series they read the linear's output, which nothing else keeps. With dropout the mask and the dropped
    copy are kept instead.
    """
    chosen = [target for target in stage.targets if target.name in method.targets]
    wide = method.bottleneck * (2 if method.activation == "gelu" else 1)
    hidden = wide * sum(_rows(stage, target.name, n) for target in chosen)
    if method.dropout > 0:
        reads = [
            _rows(stage, t.name, n) * (t.outputs if method.form == "series" else t.inputs) for t in chosen
        ]
        return hidden + 2 * sum(reads)
    if method.form == "parallel":
        return hidden + _read_by(chosen, stage, n)
    written = {_module(stage, t.name): t.outputs * _rows(stage, t.name, n) for t in chosen}
    if _is_fused(stage) and "norm1" in written:
        written["norm1"] *= 3  # a slice keeps the whole
    return hidden + sum(written.values())


def _prefixed(method: PrefixMethod, stage: Stage, n: Pass) -> int:
    """Of a prefix of P tokens: `2 d P` a group beside its own keys and values, and H P a query in scores."""
    scores = n.queries * stage.heads * method.tokens if stage.seen else 0
    return scores + 2 * n.groups * method.tokens * stage.width
