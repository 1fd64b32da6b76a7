"""What the planner needs to know of a backbone: sizes, without torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from replora.config import RunConfig
from replora.errors import PlanError
from replora.models.shapes import BackboneShape, LanguageShape, TargetShape, shapes_of
from replora.verbs import nearest

__all__ = ["BYTES", "Anatomy", "anatomy_of"]

#: Of one number of the base and its activations, by `train.precision`.
BYTES = {"fp32": 4, "fp64": 8, "bf16": 2}
#: Patches up to which ViTs run plain attention (replora.models.vision.unfuse_short_attention).
_PLAIN_ATTENTION = 64
_KNOWN = ("vit-digits", "vit-ti16", "vit-s16", "vit-b16", "vit-l16", "llama-7b", "llama-13b")


@dataclass(frozen=True)
class Anatomy:
    """Sizes of a transformer.

    Attributes:
        family: Which norms, MLP and attention its blocks have.
        width: Features of a token, d.
        hidden: Features inside the MLP, i.
        depth: Blocks, L.
        heads: Attention heads.
        vocabulary: Rows of the language head, V; 0 without one.
        tokens: Tokens of one example, at most: a ViT's patches, or the task's cutoff; None if unknown.
        base_parameters: P.
        layer_parameters: Of the largest module that ZeRO-3 gathers at once.
        targets: Every adaptable target.
        fused_attention: Whether attention never holds the `[H, T, T]` weights.
        keys: Features of a token's keys; fewer than `width` where queries are grouped.
        pixels: Numbers of an image for each of its tokens; 0 for texts.
    """

    family: Literal["vit", "llama"]
    width: int
    hidden: int
    depth: int
    heads: int
    vocabulary: int
    tokens: int | None
    base_parameters: int
    layer_parameters: int
    targets: Sequence[TargetShape]
    fused_attention: bool = True
    keys: int = 0
    pixels: int = 0


def anatomy_of(config: RunConfig) -> Anatomy:
    """Sizes of a run's backbone.

    Raises:
        PlanError: If they are not known without building the model.
    """
    shape = shapes_of(config.backbone.name) or _described(config)
    if shape is None:
        hint = nearest(config.backbone.name, _KNOWN)
        raise PlanError(
            f"backbone.name: the sizes of {config.backbone.name} are not known without building it, so its "
            f"memory cannot be planned.\n  {hint}Known: {', '.join(_KNOWN)}, plain timm/vit_* names, and "
            "hf/<folder> with the config.json of a model of Llama's form."
        )
    if not isinstance(shape, BackboneShape | LanguageShape):
        raise PlanError(
            f"backbone.name: memory of {config.backbone.name} is not planned yet: its activations were never "
            f"measured against a formula.\n  Planned: {', '.join(_KNOWN)}, plain timm/vit_* names."
        )
    return _llama(shape, config) if isinstance(shape, LanguageShape) else _vit(shape)


#: Fields of a config.json of Llama's form -> those of `LanguageShape`.
_DESCRIBED = {
    "hidden_size": "width",
    "num_hidden_layers": "depth",
    "num_attention_heads": "heads",
    "intermediate_size": "hidden",
    "vocab_size": "vocabulary",
}


def _described(config: RunConfig) -> LanguageShape | None:
    """Sizes that a checkpoint's folder states; its weights are not looked at."""
    backbone = config.backbone
    named = backbone.weights if backbone.weights not in ("pretrained", "random") else backbone.name
    if not backbone.name.startswith("hf/"):
        return None
    path = Path(named.removeprefix("hf/")).expanduser() / "config.json"
    try:
        content = json.loads(path.read_bytes())
        sizes = {field: int(content[name]) for name, field in _DESCRIBED.items()}
        return LanguageShape(**sizes, key_heads=int(content.get("num_key_value_heads", sizes["heads"])))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # the caller says what is needed


def _vit(shape: BackboneShape) -> Anatomy:
    width = shape.width
    return Anatomy(
        family="vit",
        width=width,
        hidden=4 * width,
        depth=shape.depth,
        heads=shape.heads,
        vocabulary=0,
        tokens=shape.tokens,
        base_parameters=shape.base_parameters,
        layer_parameters=4 * width * width,
        targets=shape.targets,
        fused_attention=shape.tokens - 1 > _PLAIN_ATTENTION,
        pixels=shape.channels * shape.image_size**2 // shape.tokens,
    )


def _llama(shape: LanguageShape, config: RunConfig) -> Anatomy:
    width = shape.width
    return Anatomy(
        family="llama",
        width=width,
        hidden=shape.hidden,
        depth=shape.depth,
        heads=shape.heads,
        vocabulary=shape.vocabulary,
        tokens=getattr(config.task, "cutoff", None),
        base_parameters=shape.base_parameters,
        layer_parameters=max(shape.vocabulary, shape.hidden) * width,
        targets=shape.targets,
        keys=width // shape.heads * shape.key_heads,
    )
