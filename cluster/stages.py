"""Parts of a backbone whose layers are alike, as the memory of a pass depends on them; without torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from replora.models.shapes import BartShape, TargetShape, VideoSwinShape

__all__ = ["Pass", "Stage", "bart_stages", "video_stages"]

Kind = Literal["llama", "vit", "last", "window", "encoder", "own", "cross"]


@dataclass(frozen=True)
class Pass:
    """What one pass runs through a stage, in tokens of all examples.

    Attributes:
        tokens: That norms and MLP see.
        queries: That ask in attention; more than `tokens` where windows are padded.
        keys: That are asked.
        groups: Examples or windows whose tokens see one another.
    """

    tokens: int
    queries: int
    keys: int
    groups: int


@dataclass(frozen=True)
class Stage:
    """Layers of one kind and size, one after the other.

    Attributes:
        kind: `llama` and `vit` as they are called; `last`: of a ViT, for its class token alone; `window`:
            Video Swin's; BART's `encoder`, and a decoder layer in two, its `own` attention and the `cross`
            one with the MLP.
        width: Features of a token, d.
        hidden: Features inside the MLP, i; 0 without one.
        depth: Layers.
        heads: Attention heads, H.
        targets: Of one layer.
        tokens: Of one example; None if unknown.
        queries: Of one example, where it is not `tokens`.
        keys: Of one example, where they are not the queries.
        seen: Keys in a row of the scores `[H, T, T]`, where attention holds them; 0 where it is fused.
    """

    kind: Kind
    width: int
    hidden: int
    depth: int
    heads: int
    targets: Sequence[TargetShape]
    tokens: int | None
    queries: int | None = None
    keys: int | None = None
    seen: int = 0

    @property
    def norms(self) -> int:
        """Of one layer, of `tokens` (the other norm of a ViT's last layer is the keys')."""
        return 1 if self.kind in ("own", "last") else 2

    @property
    def attention_width(self) -> int:
        """Features of all heads together."""
        return next((target.inputs for target in self.targets if target.name == "output"), self.width)

    def passing(self, rows: int, tokens: int | None) -> Pass:
        """A pass of `rows` tokens, where the backbone counts `tokens` an example."""
        if tokens is None or self.tokens is None:
            return Pass(rows, rows, rows, 1)
        own, queries = self.tokens, self.queries or self.tokens
        asking, asked = (rows * each // tokens for each in (queries, self.keys or queries))
        groups = asking // self.seen if self.kind == "window" else -(-rows // tokens)
        return Pass(rows * own // tokens, asking, asked, groups)


def video_stages(shape: VideoSwinShape, frames: int, image_size: int) -> tuple[Stage, ...]:
    """Of a clip of so many square frames; each stage has half the height and width of the one before."""
    sizes = [-(-size // by) for size, by in zip((frames, image_size, image_size), shape.patch, strict=True)]
    blocks = [sum(shape.depths[:index]) for index in range(len(shape.depths))]
    stages = []
    for index, (depth, heads) in enumerate(zip(shape.depths, shape.heads, strict=True)):
        window = [min(size, most) for size, most in zip(sizes, shape.window, strict=True)]
        padded = [-(-size // length) * length for size, length in zip(sizes, window, strict=True)]
        width = shape.embed << index
        stages.append(
            Stage(
                kind="window",
                width=width,
                hidden=4 * width,
                depth=depth,
                heads=heads,
                targets=_of_block(shape.targets, blocks[index]),
                tokens=math.prod(sizes),
                queries=math.prod(padded),
                seen=math.prod(window),
            )
        )
        sizes = [sizes[0], *(-(-size // 2) for size in sizes[1:])]
    return tuple(stages)


def bart_stages(shape: BartShape, source: int, target: int) -> tuple[Stage, ...]:
    """Of an example with so many tokens for the encoder (visual ones among them) and the decoder."""
    depth, width, heads = shape.depth, shape.width, shape.heads
    first, own, cross = (_of_block(shape.targets, block) for block in (0, depth, depth + 1))
    return (
        Stage("encoder", width, shape.hidden, depth, heads, first, source),
        Stage("own", width, 0, depth, heads, own, target),
        Stage("cross", width, shape.hidden, depth, heads, cross, target, keys=source),
    )


def _of_block(targets: Sequence[TargetShape], block: int) -> tuple[TargetShape, ...]:
    return tuple(target for target in targets if target.block == block)
