"""Bytes of a pass: what it keeps for the backward pass, its largest temporaries, and an evaluation's.

A frozen linear saves nothing (its weight has no gradient); an adapted one saves its input and, where it
is narrow, the `[tokens, rank]` inner activations (replora.methods.layer). In numbers of the base's
precision, with d the width, i the MLP's width, H heads:

    LLaMA   2 norms: 2 d in fp32;  attention q, k, v, out: 4 d, its log-sums: H in fp32;  SwiGLU: 3 i
            (in bf16, q and v adapted: 8 d + 8 d + 2 d + 6 i = 18 d + 6 i bytes)
    ViT     2 norms: 2 d and 4 statistics in fp32;  attention: 4 d and H, or 3 d and H T where it is not
            fused;  GELU: i

Keys and values are counted at the width of the queries: with grouped queries they are repeated where
the kernel does not take groups, so this is an upper bound there.

Temporaries were read off the allocations that are alive at the peak of a step (docs/cluster.md). With n
tokens of a pass, V words, and images of p bytes in all:

    LLaMA   the larger of the language head on a chunk of m tokens, 3 numbers of fp32 a word: 12 V m, and
            the MLP's backward pass, 3 i n
    ViT     the last MLP's forward pass with the images, i + 2 d a token and 2 p, or its backward pass,
            2 i + d a token
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeGuard

from cluster.anatomy import BYTES, Anatomy
from cluster.modules import adapter_numbers, mask_numbers, prefix_numbers
from replora.config import (
    AdapterMethod,
    CommonsenseTask,
    ComposedMethod,
    FullMethod,
    LinearProbeMethod,
    LowRankMethod,
    MethodConfig,
    PrefixMethod,
    RunConfig,
)
from replora.models.shapes import TargetShape

__all__ = ["activation_bytes", "evaluation_bytes", "layer_bytes", "temporary_bytes"]

#: Tokens whose logits exist at once (known: replora.models.token_loss, where it is a choice).
HEAD_CHUNK = 2_048
#: Images of one slot in a pass of an evaluation (known: the tasks of replora.tasks).
EVALUATION_IMAGES = {"digits": 128, "image-folder": 16}

#: Linears that read one and the same tensor.
_INPUT_OF = {"query": "norm1", "key": "norm1", "value": "norm1", "output": "attention"} | {
    "gate": "norm2",
    "up": "norm2",
    "down": "mlp",
}
#: Input features from which a low-rank layer makes its inner activations again instead of keeping them
#: (known: replora.methods.layer, where it is a choice).
_MADE_AGAIN = 256


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
    return rows * (own + _adapted(config, anatomy, b))


def temporary_bytes(config: RunConfig, anatomy: Anatomy, rows: int) -> int:
    """The most that a training pass of `rows` tokens holds beside what it saves."""
    b, d, i = BYTES[config.train.precision], anatomy.width, anatomy.hidden
    if isinstance(config.method, LinearProbeMethod):
        return _forward_bytes(anatomy, b, rows)
    if anatomy.family == "llama":
        return max(_head_bytes(anatomy, b, rows, numbers=3), 3 * b * i * rows)
    return b * rows * max(i + 2 * d + 2 * anatomy.pixels, 2 * i + d)


def evaluation_bytes(config: RunConfig, anatomy: Anatomy, slots: int) -> int:
    """What the largest pass of an evaluation of K slots takes: temporaries, and the cache of generation.

    By arithmetic; the cache of keys and values is `2 b d L` a token (d of the keys' heads), for every
    beam of every prompt up to the cutoff and the longest answer, and one block's copy of it as it grows.
    """
    b, task = BYTES[config.train.precision], config.task
    if anatomy.family == "vit":
        images = slots * EVALUATION_IMAGES.get(task.name, 0)
        return _forward_bytes(anatomy, b, images * (anatomy.tokens or 1))
    if not isinstance(task, CommonsenseTask):
        return 0
    texts = slots * task.eval_batch
    beams = texts * task.beams
    cache = 2 * b * anatomy.keys * beams * (task.cutoff + task.new_tokens)
    generating = cache * (anatomy.depth + 1) + max(
        _forward_bytes(anatomy, b, beams * task.cutoff), _head_bytes(anatomy, b, beams, numbers=3)
    )
    rows = texts * task.cutoff
    judging = max(_forward_bytes(anatomy, b, rows), _head_bytes(anatomy, b, rows, numbers=2))
    return max(generating, judging)


def _forward_bytes(anatomy: Anatomy, b: int, rows: int) -> int:
    """A pass without a graph: the MLP's two (SwiGLU: three) wide tensors and the residual."""
    wide = 3 if anatomy.family == "llama" else 2
    return b * rows * (wide * anatomy.hidden + 2 * anatomy.width + 2 * anatomy.pixels)


def _head_bytes(anatomy: Anatomy, b: int, rows: int, *, numbers: int) -> int:
    return numbers * max(b, 4) * anatomy.vocabulary * min(rows, HEAD_CHUNK)


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
        return b * _unread_masks(method, anatomy)
    if "output" in names:
        return attention
    if not {"gate", "up"} & names:
        return attention + norm + mlp
    gated = {"gate", "up"} - names if anatomy.family == "llama" else set()
    return attention + norm + sum({"gate": 2, "up": 1}[name] * mlp // 3 for name in gated)


def _unread_masks(method: MethodConfig, anatomy: Anatomy) -> int:
    """Masks of the dropped copies of what needs no gradient: what the first block's attention reads."""
    if not isinstance(method, LowRankMethod) or not method.dropout:
        return 0
    names = {*method.targets, *getattr(method, "plain_targets", ())} & {"query", "key", "value"}
    return anatomy.width * len({_module(anatomy, name) for name in names})


def _adapted(config: RunConfig, anatomy: Anatomy, b: int) -> int:
    """Inputs and inner activations of what trains, per token.

    Linears on one tensor share it; with dropout each linear keeps its own dropped copy and mask, and, for
    the gradient of a magnitude, what it reads as well. Outputs are never kept: those that the gradient of a
    magnitude needs are made again.
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
    inner = rank * sum(target.inputs < _MADE_AGAIN for target in chosen)
    if isinstance(method, FullMethod) and anatomy.family == "llama":
        inner += 2 * anatomy.width  # a norm whose scale trains keeps what it scales
    if not dropout:
        return b * (inner + _read_by(chosen, anatomy))
    modules = {_module(anatomy, target.name): target.inputs for target in chosen}
    gained = [target for target in chosen if _is_decomposed(method) and target.name in method.targets]
    return b * (inner + 2 * sum(modules.values()) + _read_by(gained, anatomy))


def _read_by(targets: Iterable[TargetShape], anatomy: Anatomy) -> int:
    """Numbers per token that linears read and nothing else keeps."""
    inputs = {_INPUT_OF.get(target.name, target.name): target.inputs for target in targets}
    if anatomy.fused_attention:
        inputs.pop("attention", None)  # attention's own output, which it keeps anyway
    return sum(inputs.values())


def _is_decomposed(method: MethodConfig) -> TypeGuard[ComposedMethod]:
    return isinstance(method, ComposedMethod) and method.composition != "additive"


def _module(anatomy: Anatomy, target: str) -> str:
    """A ViT's query, key and value are rows of one linear."""
    return _INPUT_OF[target] if anatomy.family == "vit" and _INPUT_OF.get(target) == "norm1" else target
