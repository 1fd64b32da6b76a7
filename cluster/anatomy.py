"""What the planner needs to know of a backbone: sizes, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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


def anatomy_of(config: RunConfig) -> Anatomy:
    """Sizes of a run's backbone.

    Raises:
        PlanError: If they are not known without building the model.
    """
    shape = shapes_of(config.backbone.name)
    if shape is None:
        hint = nearest(config.backbone.name, _KNOWN)
        raise PlanError(
            f"backbone.name: the sizes of {config.backbone.name} are not known without building it, so its "
            f"memory cannot be planned.\n  {hint}Known: {', '.join(_KNOWN)}, plain timm/vit_* names."
        )
    if not isinstance(shape, BackboneShape | LanguageShape):
        raise PlanError(
            f"backbone.name: memory of {config.backbone.name} is not planned yet: its activations were never "
            f"measured against a formula.\n  Planned: {', '.join(_KNOWN)}, plain timm/vit_* names."
        )
    return _llama(shape, config) if isinstance(shape, LanguageShape) else _vit(shape)


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
    )
