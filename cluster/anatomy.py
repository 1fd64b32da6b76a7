"""What the planner needs to know of a backbone: sizes, without torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cluster.stages import Stage, bart_stages, video_stages
from replora.config import RunConfig, TextToTextTask, VideoFolderTask
from replora.errors import PlanError
from replora.models.shapes import (
    BART,
    LLAMA,
    VIDEO_SWIN,
    BackboneShape,
    BartShape,
    LanguageShape,
    TargetShape,
    VideoSwinShape,
    shapes_of,
)
from replora.verbs import nearest

__all__ = ["BYTES", "Anatomy", "anatomy_of"]

#: Of one number of the base and its activations, by `train.precision`.
BYTES = {"fp32": 4, "fp64": 8, "bf16": 2}
#: Patches up to which ViTs run plain attention (replora.models.vit.unfuse_short_attention).
_PLAIN_ATTENTION = 64
_KNOWN = ("vit-digits", "vit-ti16", "vit-s16", "vit-b16", "vit-l16", *LLAMA, *BART, *VIDEO_SWIN)


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
        stages: Parts of unlike layers; empty where all layers are alike.
        tables_bytes: Of what a base holds beside its weights, in a type of its own.
        beside_parameters: What trains beside any method.
        visual: Features of each visual token that a VL-BART embeds; 0 without.
        visual_tokens: Of one example.
    """

    family: Literal["vit", "llama", "swin", "bart"]
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
    stages: tuple[Stage, ...] = ()
    tables_bytes: int = 0
    beside_parameters: int = 0
    visual: int = 0
    visual_tokens: int = 0

    @property
    def parts(self) -> tuple[Stage, ...]:
        """Its layers, in one stage where they are alike; a ViT's last is of the class token alone."""
        if self.stages:
            return self.stages
        targets = tuple(target for target in self.targets if target.block == 0)
        seen = 0 if self.fused_attention else self.tokens or 1
        tokens, sizes = self.tokens or None, (self.width, self.hidden)
        if self.family == "llama":
            return (Stage("llama", *sizes, self.depth, self.heads, targets, tokens, seen=seen),)
        return (
            Stage("vit", *sizes, self.depth - 1, self.heads, targets, tokens, seen=seen),
            Stage("last", *sizes, 1, self.heads, targets, 1, keys=tokens, seen=seen),
        )


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
            "hf/<folder or cached hub name> with the config.json of a BART or of a model of Llama's form."
        )
    if isinstance(shape, VideoSwinShape):
        return _video(shape, config)
    if isinstance(shape, BartShape):
        return _bart(shape, config)
    return _llama(shape, config) if isinstance(shape, LanguageShape) else _vit(shape)


def _described(config: RunConfig) -> LanguageShape | BartShape | None:
    """Sizes that the config.json of a checkpoint states; its weights are not looked at."""
    try:
        content = json.loads(_config_file(config).read_bytes())
        return _bart_shape(content) if content.get("model_type") == "bart" else _language_shape(content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # the caller says what is needed


def _config_file(config: RunConfig) -> Path:
    """In the folder that the run names, or in what this machine has of the hub.

    Raises:
        OSError: If it is in neither.
    """
    backbone = config.backbone
    if not backbone.name.startswith("hf/"):
        raise FileNotFoundError(backbone.name)
    named = backbone.weights if backbone.weights not in ("pretrained", "random") else backbone.name
    folder = Path(named.removeprefix("hf/")).expanduser()
    if folder.is_dir():
        return folder / "config.json"
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(named.removeprefix("hf/"), "config.json")
    if not isinstance(found, str):
        raise FileNotFoundError(named)
    return Path(found)


def _language_shape(content: Mapping[str, Any]) -> LanguageShape:
    width, heads = int(content["hidden_size"]), int(content["num_attention_heads"])
    qwen2 = content.get("model_type") == "qwen2"  # known: its query, key and value have biases
    return LanguageShape(
        width=width,
        depth=int(content["num_hidden_layers"]),
        heads=heads,
        hidden=int(content["intermediate_size"]),
        vocabulary=int(content["vocab_size"]),
        key_heads=int(content.get("num_key_value_heads") or heads),
        head_width=int(content.get("head_dim") or width // heads),
        tied=bool(content.get("tie_word_embeddings", False)),
        biases=bool(content.get("attention_bias", qwen2)),
    )


def _bart_shape(content: Mapping[str, Any]) -> BartShape:
    return BartShape(
        width=int(content["d_model"]),
        depth=int(content["encoder_layers"]),
        heads=int(content["encoder_attention_heads"]),
        hidden=int(content["encoder_ffn_dim"]),
        vocabulary=int(content["vocab_size"]),
        positions=int(content["max_position_embeddings"]) + 2,
        visual=int(content.get("visual_features", 0)),
    )


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
        keys=shape.key_width,
    )


def _video(shape: VideoSwinShape, config: RunConfig) -> Anatomy:
    """Of clips as the task gives them; its tokens are those of the first stage."""
    task = config.task
    if not isinstance(task, VideoFolderTask):
        raise _wrong_task(config, "clips")
    stages = video_stages(shape, task.frames, task.image_size)
    last = stages[-1]
    return Anatomy(
        family="swin",
        width=last.width,
        hidden=last.hidden,
        depth=sum(shape.depths),
        heads=last.heads,
        vocabulary=0,
        tokens=stages[0].tokens,
        base_parameters=shape.base_parameters,
        layer_parameters=8 * shape.width**2,
        targets=shape.targets,
        fused_attention=False,
        pixels=shape.channels * math.prod(shape.patch),
        stages=stages,
        tables_bytes=8 * math.prod(shape.window) ** 2 * sum(shape.depths),  # of places in a window, int64
    )


def _bart(shape: BartShape, config: RunConfig) -> Anatomy:
    """Of texts as the task gives them; its tokens are the encoder's and the decoder's."""
    task = config.task
    if not isinstance(task, TextToTextTask):
        raise _wrong_task(config, "sources and targets")
    source, target = task.source_tokens + task.visual_tokens, task.target_tokens + 1  # and the start token
    return Anatomy(
        family="bart",
        width=shape.width,
        hidden=shape.hidden,
        depth=2 * shape.depth,
        heads=shape.heads,
        vocabulary=shape.vocabulary,
        tokens=source + target,
        base_parameters=shape.base_parameters,
        layer_parameters=shape.vocabulary * shape.width,
        targets=shape.targets,
        keys=shape.width,
        stages=bart_stages(shape, source, target),
        beside_parameters=shape.beside_parameters,
        visual=shape.visual,
        visual_tokens=task.visual_tokens,
    )


def _wrong_task(config: RunConfig, taken: str) -> PlanError:
    return PlanError(
        f"backbone.name: {config.backbone.name} takes {taken}, but the task is {config.task.name}.\n"
        "  Choose a backbone for the task, or a task for the backbone (`replora ls`)."
    )
