"""Sizes of known backbones by arithmetic, without torch: for parameter counts and checks before a run."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from functools import cache, cached_property

__all__ = [
    "BART",
    "LLAMA",
    "VIDEO_SWIN",
    "BackboneShape",
    "BartShape",
    "LanguageShape",
    "Shape",
    "TargetShape",
    "VideoSwinShape",
    "is_language_model",
    "shapes_of",
]


@dataclass(frozen=True)
class TargetShape:
    """Size of one adaptable target; the same names as `replora.models.base.Target` uses."""

    name: str
    block: int
    inputs: int
    outputs: int
    heads: int = 0


@dataclass(frozen=True)
class BackboneShape:
    """A plain ViT: patches, a class token, learned positions, `depth` pre-norm blocks with a 4 x MLP.

    Attributes:
        width: Features of a token, d.
        depth: Attention blocks.
        heads: Attention heads of a block.
        image_size: Side of the input, in pixels.
        patch: Side of a patch, in pixels.
        channels: Input channels.
    """

    width: int
    depth: int
    heads: int
    image_size: int
    patch: int
    channels: int = 3

    @property
    def beside_parameters(self) -> int:
        """Nothing trains beside a method."""
        return 0

    @property
    def tokens(self) -> int:
        """Tokens of one image: patches and the class token."""
        return (self.image_size // self.patch) ** 2 + 1

    @property
    def base_parameters(self) -> int:
        """Weights of the backbone without a task head.

        With biases everywhere: patches `c p^2 d + d`, class token `d`, positions `tokens d`; per block
        two norms `4 d`, qkv `3 d^2 + 3 d`, projection `d^2 + d`, MLP `8 d^2 + 5 d`; a last norm `2 d`.
        """
        d = self.width
        embedding = self.channels * self.patch**2 * d + d + d + self.tokens * d
        return embedding + self.depth * (12 * d**2 + 13 * d) + 2 * d

    @cached_property
    def targets(self) -> tuple[TargetShape, ...]:
        """Every adaptable target, blocks in order."""
        d = self.width
        sizes = dict.fromkeys(("query", "key", "value"), (d, d, self.heads))
        sizes |= {"output": (d, d, 0), "up": (d, 4 * d, 0), "down": (4 * d, d, 0)}
        return tuple(
            TargetShape(name, block, *size) for block in range(self.depth) for name, size in sizes.items()
        )


@dataclass(frozen=True)
class LanguageShape:
    """A language model of Llama's form: RMS norms, rotary positions, SwiGLU.

    Attributes:
        width: Features of a token, d.
        depth: Attention blocks.
        heads: Attention heads of a block.
        hidden: Features inside the MLP, i.
        vocabulary: Tokens it knows, V.
        key_heads: Heads of keys and values; fewer than `heads` where queries are grouped.
        head_width: Features of an attention head; 0 for `width / heads`.
        tied: Whether the language head is the embedding.
        biases: Whether query, key and value have biases.
    """

    width: int
    depth: int
    heads: int
    hidden: int
    vocabulary: int
    key_heads: int
    head_width: int = 0
    tied: bool = False
    biases: bool = False

    @property
    def key_width(self) -> int:
        """Features of a token's keys."""
        return (self.head_width or self.width // self.heads) * self.key_heads

    @property
    def beside_parameters(self) -> int:
        """Nothing trains beside a method."""
        return 0

    @property
    def base_parameters(self) -> int:
        """Per block four projections, three linears `3 d i` and two norms `2 d`; embedding, norm, head."""
        block = sum(target.inputs * target.outputs for target in self._block(0)) + 2 * self.width
        if self.biases:
            block += sum(target.outputs for target in self._block(0) if target.heads)
        tables = self.vocabulary * self.width * (1 if self.tied else 2)
        return self.depth * block + tables + self.width

    @cached_property
    def targets(self) -> tuple[TargetShape, ...]:
        """Every adaptable target, blocks in order."""
        return tuple(target for block in range(self.depth) for target in self._block(block))

    def _block(self, block: int) -> list[TargetShape]:
        d, keys = self.width, self.key_width
        queries = self.head_width * self.heads or d
        sizes = {"query": (d, queries, self.heads), "output": (queries, d, 0)}
        sizes |= dict.fromkeys(("key", "value"), (d, keys, self.key_heads))
        sizes |= dict.fromkeys(("gate", "up"), (d, self.hidden, 0)) | {"down": (self.hidden, d, 0)}
        return [TargetShape(name, block, *sizes[name]) for name in _LLAMA_TARGETS]


@dataclass(frozen=True)
class VideoSwinShape:
    """torchvision's Video Swin: stages of windowed attention, each half as fine and twice as wide.

    Attributes:
        embed: Features of a token in the first stage, e.
        depths: Attention blocks of each stage.
        heads: Attention heads of a block of each stage.
        window: Tokens of a window: in time, height and width.
        patch: Frames, height and width of a patch.
        channels: Input channels.
    """

    embed: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: tuple[int, int, int] = (8, 7, 7)
    patch: tuple[int, int, int] = (2, 4, 4)
    channels: int = 3

    @property
    def width(self) -> int:
        """Features that a task head reads: those of the last stage."""
        return self._width(len(self.depths) - 1)

    @property
    def beside_parameters(self) -> int:
        """Nothing trains beside a method."""
        return 0

    @property
    def base_parameters(self) -> int:
        """Weights of the backbone without a task head.

        Patches `c p e + e` and their norm `2 e`. Per block of width d, with h heads: attention and MLP as
        in a ViT, and a position table `(2 wt - 1)(2 wh - 1)(2 ww - 1) h`. Between stages a norm `8 d` and
        a linear `8 d^2` without bias. A last norm.
        """
        offsets = math.prod(2 * each - 1 for each in self.window)
        total = self.channels * math.prod(self.patch) * self.embed + 3 * self.embed
        for stage, (depth, heads) in enumerate(zip(self.depths, self.heads, strict=True)):
            d = self._width(stage)
            total += depth * (12 * d**2 + 13 * d + offsets * heads)
            total += 0 if stage == len(self.depths) - 1 else 8 * d**2 + 8 * d
        return total + 2 * self.width

    @cached_property
    def targets(self) -> tuple[TargetShape, ...]:
        """Every adaptable target, blocks in order and counted through all stages."""
        blocks = [stage for stage, depth in enumerate(self.depths) for _ in range(depth)]
        return tuple(target for block, stage in enumerate(blocks) for target in self._block(block, stage))

    def _width(self, stage: int) -> int:
        return self.embed << stage  # each stage is twice as wide as the one before

    def _block(self, block: int, stage: int) -> list[TargetShape]:
        d, heads = self._width(stage), self.heads[stage]
        sizes = dict.fromkeys(("query", "key", "value"), (d, d, heads))
        sizes |= {"output": (d, d, 0), "up": (d, 4 * d, 0), "down": (4 * d, d, 0)}
        return [TargetShape(name, block, *size) for name, size in sizes.items()]


@dataclass(frozen=True)
class BartShape:
    """BART: post-norm encoder and decoder with learned positions, biases everywhere, tied embeddings.

    Attributes:
        width: Features of a token, d.
        depth: Layers of the encoder, and of the decoder.
        heads: Attention heads of a block.
        hidden: Features inside the MLP, i.
        vocabulary: Tokens it knows, V.
        positions: Rows of a position table (two more than positions, as BART counts them).
        visual: Width of the visual features that VL-BART takes beside the text; 0 for text alone.
    """

    width: int
    depth: int
    heads: int
    hidden: int
    vocabulary: int
    positions: int
    visual: int = 0

    @property
    def base_parameters(self) -> int:
        """Embedding `V d`, two position tables with norms, encoder and decoder layers, the visual embedding.

        A layer has attention blocks `4 d^2 + 4 d` (one in the encoder, two in the decoder), an MLP
        `2 d i + d + i`, and one norm `2 d` more than it has attention blocks.
        """
        d, attention = self.width, 4 * self.width**2 + 4 * self.width
        mlp = 2 * d * self.hidden + d + self.hidden
        layers = self.depth * (3 * attention + 2 * mlp + 10 * d)
        return (self.vocabulary + 2 * self.positions) * d + 4 * d + layers + self.visual_parameters

    @property
    def visual_parameters(self) -> int:
        """Of VL-BART's visual embedding (known): a linear and a norm each for features and boxes, two images.

        Features `F d + 3 d`, the five numbers of a box `5 d + 3 d`, an embedding `2 d` of the image's place.
        """
        return (self.visual + 13) * self.width if self.visual else 0

    @property
    def bias_parameters(self) -> int:
        """All biases: of linears and norms."""
        layer = 3 * 4 + 2 * 1 + 5  # in units of d: attention blocks, MLPs down, norms
        return self.depth * (layer * self.width + 2 * self.hidden) + 2 * self.width

    @property
    def beside_parameters(self) -> int:
        """VL-BART trains its biases and its visual embedding beside any method (known)."""
        return self.bias_parameters + self.visual_parameters if self.visual else 0

    @cached_property
    def targets(self) -> tuple[TargetShape, ...]:
        """Every adaptable target: blocks of the encoder, then each decoder layer's own and cross one.

        The MLP of a decoder layer is counted to its cross-attention block.
        """
        blocks = [True] * self.depth + [False, True] * self.depth
        return tuple(t for block, has_mlp in enumerate(blocks) for t in self._block(block, has_mlp))

    def _block(self, block: int, has_mlp: bool) -> list[TargetShape]:
        d = self.width
        sizes = dict.fromkeys(("query", "key", "value"), (d, d, self.heads)) | {"output": (d, d, 0)}
        if has_mlp:
            sizes |= {"up": (d, self.hidden, 0), "down": (self.hidden, d, 0)}
        return [TargetShape(name, block, *size) for name, size in sizes.items()]


Shape = BackboneShape | LanguageShape | VideoSwinShape | BartShape

#: Known: torchvision's builders. `video-swin-nano` is ours, for first tries and tests.
VIDEO_SWIN = {
    "video-swin-nano": VideoSwinShape(16, (2, 2), (2, 4), window=(2, 4, 4)),
    "video-swin-t": VideoSwinShape(96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "video-swin-s": VideoSwinShape(96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "video-swin-b": VideoSwinShape(128, (2, 2, 18, 2), (4, 8, 16, 32)),
}
_BART_BASE = BartShape(width=768, depth=6, heads=12, hidden=3072, vocabulary=50265, positions=1026)
#: Known: the published configuration of facebook/bart-base; features of VL-BART's image and video tasks.
BART = {
    "bart-base": _BART_BASE,
    "vl-bart-image": replace(_BART_BASE, visual=2048),
    "vl-bart-video": replace(_BART_BASE, visual=512),
}
#: Known: Touvron et al., "LLaMA", 2023, table 2, and the published configurations.
LLAMA = {
    "llama-7b": LanguageShape(4096, 32, 32, 11008, 32000, key_heads=32),
    "llama-13b": LanguageShape(5120, 40, 40, 13824, 32000, key_heads=40),
}
_LLAMA_TARGETS = ("query", "key", "value", "output", "gate", "up", "down")
_DIGITS = BackboneShape(width=64, depth=4, heads=4, image_size=8, patch=2, channels=1)
_SIZES = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}
_NAMED = {"vit-ti16": "tiny", "vit-s16": "small", "vit-b16": "base", "vit-l16": "large"}
_TIMM = re.compile(r"timm/vit_(tiny|small|base|large)_patch(8|16|32)_(224|384)(?:\.\w+)?")


def is_language_model(name: str) -> bool:
    """Whether a backbone's configured name is that of a language model."""
    return name in LLAMA or name in BART or name.startswith("hf/")


@cache
def shapes_of(name: str) -> Shape | None:
    """The sizes of a backbone by its configured name; None where only building the model tells."""
    known: dict[str, Shape] = {"vit-digits": _DIGITS, **LLAMA, **VIDEO_SWIN, **BART}
    if name in known:
        return known[name]
    if name in _NAMED:
        return BackboneShape(*_SIZES[_NAMED[name]], image_size=224, patch=16)
    found = _TIMM.fullmatch(name)
    if found is None:
        return None
    size, patch, image_size = found.groups()
    return BackboneShape(*_SIZES[size], image_size=int(image_size), patch=int(patch))
