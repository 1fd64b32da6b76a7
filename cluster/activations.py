"""Bytes of a pass: what it keeps for the backward pass, its largest temporaries, and an evaluation's.

What one layer keeps is in cluster.blocks; here a backbone's stages are added up. Temporaries were read off
the allocations that are alive at the peak of a step (docs/cluster.md). With n tokens of a pass, V words, b
bytes a number, and images of p bytes in all:

    LLaMA   the larger of the language head on a chunk of m tokens, 3 numbers of fp32 a word: 12 V m, and
            the MLP's backward pass, 3 i n
    ViT     the last MLP's forward pass with the images, i + 2 d a token and 2 p, or its backward pass,
            2 i + d a token
    Swin    as a ViT in every stage, or the backward pass of attention, 2 H M + 4 d a token of a window
    BART    as LLaMA's head, or the backward pass of an MLP, 2 i + d a token

A stage's temporaries in the backward pass meet what it and the stages before it keep, not what those after
it kept: theirs has been freed.
"""

from __future__ import annotations

from dataclasses import replace

from cluster.anatomy import BYTES, Anatomy
from cluster.blocks import layer_bytes, reads_encoded, unreached_bytes
from cluster.stages import Pass, Stage
from replora.config import (
    CommonsenseTask,
    FullMethod,
    LinearProbeMethod,
    PrefixMethod,
    RunConfig,
    TextToTextTask,
)

__all__ = ["activation_bytes", "evaluation_bytes", "temporary_bytes"]

#: Tokens whose logits exist at once (known: replora.models.token_loss, where it is a choice).
HEAD_CHUNK = 2_048
#: Examples of one slot in a pass of an evaluation (known: the tasks of replora.tasks).
EVALUATION_BATCH = {"digits": 32, "image-folder": 16, "video-folder": 8}


def activation_bytes(config: RunConfig, anatomy: Anatomy, rows: int, *, recompute: bool) -> int:
    """What a forward pass of `rows` tokens leaves for the backward pass.

    With recomputation: each block's input, and everything of one block at a time.
    """
    if isinstance(config.method, LinearProbeMethod) and not anatomy.beside_parameters:
        return 0  # the base runs without a graph
    once = _kept_once(config, anatomy, rows, recompute=recompute)
    whole = once + sum(_kept_by_stages(config, anatomy, rows))
    if not recompute:
        return whole
    layers = [
        layer_bytes(config.method, stage, BYTES[config.train.precision], n)
        for stage, n in _passes(anatomy, rows)
    ]
    if anatomy.family == "bart":
        layers = [layers[0], layers[1] + layers[2]]  # the decoder's two attentions are one block
    return min(once + sum(_inputs_of_stages(config, anatomy, rows)) + max(layers), whole)


def temporary_bytes(config: RunConfig, anatomy: Anatomy, rows: int, *, recompute: bool) -> int:
    """The most that a training pass of `rows` tokens holds beside what it saves."""
    b, passes = BYTES[config.train.precision], _passes(anatomy, rows)
    if isinstance(config.method, LinearProbeMethod):
        return max(_forward_bytes(stage, anatomy, b, n) for stage, n in passes)
    kept, later = (_inputs_of_stages if recompute else _kept_by_stages)(config, anatomy, rows), 0
    read = passes[-1][1].tokens
    most = _head_bytes(anatomy, b, read, numbers=3) + (b * anatomy.width * read if anatomy.vocabulary else 0)
    for (stage, n), saved in reversed(list(zip(passes, kept, strict=True))):
        most = max(most, _backward_bytes(stage, anatomy, b, n) - later)
        later += saved
    return most


def evaluation_bytes(config: RunConfig, anatomy: Anatomy, slots: int, ranks: int = 1) -> int:
    """What the largest pass of an evaluation of K slots takes: temporaries, and the cache of generation.

    By arithmetic. Ranks share the examples of a pass. All slots answer at once only where validation asks
    for answers; the test comes when a run is alone again.
    """
    b, task = BYTES[config.train.precision], config.task
    if isinstance(task, CommonsenseTask | TextToTextTask):
        answering = slots if task.val_answers else 1
        texts = -(-task.eval_batch // ranks)
        generating = _generation_bytes(anatomy, b, task, answering * texts)
        return max(generating, _losses_bytes(anatomy, b, task, slots * texts))
    examples = 0 if anatomy.vocabulary else EVALUATION_BATCH.get(task.name, 0)
    rows = slots * -(-examples // ranks) * (anatomy.tokens or 1)
    return max(_forward_bytes(stage, anatomy, b, n) for stage, n in _passes(anatomy, rows))


def _generation_bytes(anatomy: Anatomy, b: int, task: CommonsenseTask | TextToTextTask, texts: int) -> int:
    """The cache of keys and values: `2 b d L` a token (d of the keys' heads) of every beam of every text.

    And one block's copy of it as it grows. A text has the longest prompt and answer; of a BART's, the
    encoder's tokens, which are there once, and the decoder's.
    """
    first, last, beams = anatomy.parts[0], anatomy.parts[-1], texts * task.beams
    if isinstance(task, CommonsenseTask):
        read, written = anatomy.tokens or task.cutoff, task.new_tokens
        rows = beams * read
    else:
        read, written = last.keys or 0, task.target_tokens
        rows = texts * read  # the encoder runs before texts become beams
    cache = 2 * b * anatomy.keys * beams * (read + written) * (last.depth + 1)
    prompts = _forward_bytes(first, anatomy, b, Pass(rows, rows, rows, 1))
    return cache + max(prompts, _head_bytes(anatomy, b, beams, numbers=3))


def _losses_bytes(anatomy: Anatomy, b: int, task: CommonsenseTask | TextToTextTask, texts: int) -> int:
    """Losses of whole texts without a graph: the widest layer, or the head on a chunk."""
    if isinstance(task, CommonsenseTask):
        anatomy = replace(anatomy, tokens=anatomy.tokens or task.cutoff)
    scored = anatomy.tokens if isinstance(task, CommonsenseTask) else task.target_tokens
    passes = _passes(anatomy, texts * (anatomy.tokens or 1))
    widest = max(_forward_bytes(stage, anatomy, b, n) for stage, n in passes)
    return max(widest, _head_bytes(anatomy, b, texts * (scored or 1), numbers=2))


def _passes(anatomy: Anatomy, rows: int) -> list[tuple[Stage, Pass]]:
    """Each stage with what a pass of `rows` tokens runs through it."""
    return [(stage, stage.passing(rows, anatomy.tokens)) for stage in anatomy.parts]


def _kept_by_stages(config: RunConfig, anatomy: Anatomy, rows: int) -> list[int]:
    """What the layers of each stage keep, and the norms between and behind them."""
    b, method, kept = BYTES[config.train.precision], config.method, []
    for index, (stage, n) in enumerate(_passes(anatomy, rows)):
        kept.append(stage.depth * layer_bytes(method, stage, b, n))
        if (index == 0 or stage.kind == "own") and not anatomy.beside_parameters:
            kept[index] -= unreached_bytes(method, stage, b, n)
        if stage.kind == "window":
            kept[index] += _between_stages(config, stage, b, n, first=index == 0)
    return kept


def _inputs_of_stages(config: RunConfig, anatomy: Anatomy, rows: int) -> list[int]:
    """What the layers of each stage keep where all else is computed again: what they read."""
    b = BYTES[config.train.precision]
    return [
        # The decoder's cross attention is in the block of its own one.
        0
        if stage.kind == "cross"
        else b * stage.width * (n.keys if stage.kind == "last" else n.tokens) * stage.depth
        for stage, n in _passes(anatomy, rows)
    ]


def _between_stages(config: RunConfig, stage: Stage, b: int, n: Pass, *, first: bool) -> int:
    """What the norm behind a stage of a Video Swin keeps, less the first norm, before which nothing trains.

    Under full fine-tuning that norm counts, and so do the patches, their norm and what merges them.
    """
    numbers = n.tokens * stage.width
    if isinstance(config.method, FullMethod):
        return b * numbers * (3 if first else 2)
    return 0 if first else b * numbers


def _kept_once(config: RunConfig, anatomy: Anatomy, rows: int, *, recompute: bool) -> int:
    """What no layer of its own keeps: masks of prefixes, what the encoder gave, the visual embedding."""
    b, method, first = BYTES[config.train.precision], config.method, anatomy.parts[0]
    n = first.passing(rows, anatomy.tokens)
    kept = b * anatomy.pixels * n.tokens if isinstance(method, FullMethod) else 0
    if isinstance(method, PrefixMethod) and anatomy.family == "llama" and anatomy.tokens:
        kept += b * anatomy.tokens * (anatomy.tokens + method.tokens)  # one mask of the scores for all layers
    if anatomy.family == "bart" and (reads_encoded(method) or recompute):
        kept += b * first.width * n.tokens
    if anatomy.family == "bart" and isinstance(method, FullMethod):
        kept += b * first.width * rows  # the first norms of encoder and decoder
    if anatomy.beside_parameters or (anatomy.visual and isinstance(method, FullMethod)):
        # What the embedding reads, what its two norms read, and the first norm of the encoder.
        visual = n.groups * anatomy.visual_tokens
        kept += b * visual * (anatomy.visual + 2 * first.width)
        kept += 0 if isinstance(method, FullMethod) else b * first.width * n.tokens
    return kept


def _backward_bytes(stage: Stage, anatomy: Anatomy, b: int, n: Pass) -> int:
    """The most that the end of the forward pass, or the backward pass, of a layer holds."""
    d, i = stage.width, stage.hidden
    if stage.kind == "llama":
        return 3 * b * i * n.tokens
    attention = b * n.queries * (2 * stage.heads * stage.seen + 4 * d) if stage.kind == "window" else 0
    mlp = b * n.tokens * max(i + 2 * d, 2 * i + d)
    if stage.kind == "vit":
        mlp = b * n.tokens * max(i + 2 * d + 2 * anatomy.pixels, 2 * i + d)
    return max(attention, mlp)


def _forward_bytes(stage: Stage, anatomy: Anatomy, b: int, n: Pass) -> int:
    """A pass without a graph: the MLP's two (SwiGLU: three) wide tensors and the residual."""
    wide = 3 if stage.kind == "llama" else 2
    mlp = b * n.tokens * (wide * stage.hidden + 2 * stage.width + 2 * anatomy.pixels)
    attention = b * n.queries * (2 * stage.heads * stage.seen + 5 * stage.width)
    return max(mlp, attention) if stage.kind == "window" else mlp


def _head_bytes(anatomy: Anatomy, b: int, rows: int, *, numbers: int) -> int:
    return numbers * max(b, 4) * anatomy.vocabulary * min(rows, HEAD_CHUNK)
