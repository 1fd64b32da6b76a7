"""Sizes of known backbones by arithmetic, without torch: for parameter counts and checks before a run."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["LLAMA", "BackboneShape", "LanguageShape", "TargetShape", "is_language_model", "shapes_of"]


@dataclass(frozen=True)
class TargetShape:
    """Size of one adaptable target; the same names as `replora.models.base.Target` uses."""

    name: str
    block: int
    inputs: int
    outputs: int


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

    @property
    def targets(self) -> tuple[TargetShape, ...]:
        """Every adaptable target, blocks in order."""
        d = self.width
        sizes = dict.fromkeys(("query", "key", "value", "output"), (d, d))
        sizes |= {"up": (d, 4 * d), "down": (4 * d, d)}
        return tuple(
            TargetShape(name, block, inputs, outputs)
            for block in range(self.depth)
            for name, (inputs, outputs) in sizes.items()
        )


@dataclass(frozen=True)
class LanguageShape:
    """A language model of Llama's form: RMS norms, rotary positions, SwiGLU, no biases, an own head.

    Attributes:
        width: Features of a token, d.
        depth: Attention blocks.
        heads: Attention heads of a block.
        hidden: Features inside the MLP, i.
        vocabulary: Tokens it knows, V.
        key_heads: Heads of keys and values; fewer than `heads` where queries are grouped.
    """

    width: int
    depth: int
    heads: int
    hidden: int
    vocabulary: int
    key_heads: int

    @property
    def base_parameters(self) -> int:
        """Per block four projections, three linears `3 d i` and two norms `2 d`; embedding, norm, head."""
        block = sum(target.inputs * target.outputs for target in self._block(0)) + 2 * self.width
        return self.depth * block + 2 * self.vocabulary * self.width + self.width

    @property
    def targets(self) -> tuple[TargetShape, ...]:
        """Every adaptable target, blocks in order."""
        return tuple(target for block in range(self.depth) for target in self._block(block))

    def _block(self, block: int) -> list[TargetShape]:
        d, keys = self.width, self.width // self.heads * self.key_heads
        sizes = {"query": (d, d), "key": (d, keys), "value": (d, keys), "output": (d, d)}
        sizes |= {"gate": (d, self.hidden), "up": (d, self.hidden), "down": (self.hidden, d)}
        return [TargetShape(name, block, inputs, outputs) for name, (inputs, outputs) in sizes.items()]


#: Known: Touvron et al., "LLaMA", 2023, table 2, and the published configurations.
LLAMA = {
    "llama-7b": LanguageShape(4096, 32, 32, 11008, 32000, key_heads=32),
    "llama-13b": LanguageShape(5120, 40, 40, 13824, 32000, key_heads=40),
}
_DIGITS = BackboneShape(width=64, depth=4, heads=4, image_size=8, patch=2, channels=1)
_SIZES = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}
_NAMED = {"vit-ti16": "tiny", "vit-s16": "small", "vit-b16": "base", "vit-l16": "large"}
_TIMM = re.compile(r"timm/vit_(tiny|small|base|large)_patch(8|16|32)_(224|384)(?:\.\w+)?")


def is_language_model(name: str) -> bool:
    """Whether a backbone's configured name is that of a language model."""
    return name in LLAMA or name.startswith("hf/")


def shapes_of(name: str) -> BackboneShape | LanguageShape | None:
    """The sizes of a backbone by its configured name; None where only building the model tells."""
    if name == "vit-digits":
        return _DIGITS
    if name in LLAMA:
        return LLAMA[name]
    if name in _NAMED:
        return BackboneShape(*_SIZES[_NAMED[name]], image_size=224, patch=16)
    found = _TIMM.fullmatch(name)
    if found is None:
        return None
    size, patch, image_size = found.groups()
    return BackboneShape(*_SIZES[size], image_size=int(image_size), patch=int(patch))
