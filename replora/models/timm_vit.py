"""timm's ViTs as backbones: by name, from the hub, their blocks run as this project's own."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import timm
import torch
from timm.layers.attention import Attention
from timm.models import VisionTransformer
from timm.models.vision_transformer import Block
from torch import Tensor

from replora.cache import Cached, cached_tensors
from replora.errors import ConfigError, MachineError
from replora.models import BACKBONES
from replora.models.base import Architecture
from replora.models.vision import VitFeatures, vit_attend, vit_targets
from replora.models.vit import VitAttention, VitBlock, only_first
from replora.tasks.base import IMAGENET_MEAN, IMAGENET_STD

__all__ = ["run_own_blocks", "timm_architecture"]

_NAMED = {
    "vit-ti16": "vit_tiny_patch16_224.augreg_in21k",
    "vit-s16": "vit_small_patch16_224.augreg_in21k",
    "vit-b16": "vit_base_patch16_224.augreg_in21k",
    "vit-l16": "vit_large_patch16_224.augreg_in21k",
}
_PREFIX = "timm/"


def timm_architecture(name: str) -> Architecture:
    """One of timm's ViTs, by a short name such as `vit-b16` or as `timm/<timm's name>`.

    Raises:
        ConfigError: If timm has no such ViT.
    """
    timm_name = _timm_name(name)
    build = partial(_build, timm_name)
    with torch.device("meta"):
        model = build()
    config = cast("Mapping[str, Any]", model.pretrained_cfg)
    mean, std = torch.tensor(config["mean"]), torch.tensor(config["std"])
    task_mean, task_std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    features = VitFeatures(tuple(config["input_size"]))
    if not torch.equal(mean, task_mean) or not torch.equal(std, task_std):
        shape = (-1, 1, 1)
        scale, shift = task_std / std, (task_mean - mean) / std
        features = VitFeatures(features.image, scale.view(shape), shift.view(shape))
    return Architecture(build, features, vit_targets, partial(_pretrained, timm_name, config), vit_attend)


def run_own_blocks(model: VisionTransformer) -> None:
    """Puts `VitBlock`s on the modules of plain blocks; the last computes what the pooling reads.

    A model with other blocks than plain ones stays as it is.
    """
    if not all(type(block) is Block and type(block.attn) is Attention for block in model.blocks):
        return
    for index, block in enumerate(list(model.blocks)):
        own = {"attn": _own_attention(cast("Attention", block.attn))}
        model.blocks[index] = VitBlock({**dict(block.named_children()), **own})
    if model.global_pool == "token":
        only_first(model.blocks)


def _own_attention(attention: Attention) -> VitAttention:
    norms = attention.q_norm, attention.k_norm, attention.norm
    return VitAttention(attention.qkv, attention.proj, attention.num_heads, norms, attention.gate)


def _timm_name(name: str) -> str:
    timm_name = _NAMED.get(name, name.removeprefix(_PREFIX))
    if name in _NAMED or (name.startswith(_PREFIX) and _is_known(timm_name)):
        return timm_name
    valid = [*BACKBONES, *(_PREFIX + each for each in timm.list_models("*vit*", pretrained=True))]
    near = difflib.get_close_matches(name, valid, n=3)
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    raise ConfigError(
        f"backbone.name must be a known backbone, but got {name!r}.\n"
        f"  {hint}Names: {', '.join(BACKBONES)}, timm/<a ViT of timm.list_models()>."
    )


def _is_known(timm_name: str) -> bool:
    try:
        return timm.get_pretrained_cfg(timm_name) is not None
    except RuntimeError:  # a known architecture, but no such tag
        return False


def _build(timm_name: str) -> VisionTransformer:
    model = timm.create_model(timm_name, num_classes=0)
    if isinstance(model, VisionTransformer):
        run_own_blocks(model)
        return model
    raise ConfigError(
        f"backbone.name must be a ViT of timm, but {_PREFIX}{timm_name} is a {type(model).__name__}.\n"
        "  Use for example vit-b16 or timm/vit_base_patch16_224.augreg_in21k."
    )


def _pretrained(timm_name: str, config: Mapping[str, Any]) -> Cached:
    source = {key: str(config.get(key)) for key in ("hf_hub_id", "tag", "url")}
    return cached_tensors("timm", {"version": 1, "name": timm_name, **source}, partial(_download, timm_name))


def _download(timm_name: str) -> dict[str, Tensor]:
    try:
        model = timm.create_model(timm_name, pretrained=True, num_classes=0)
    except (OSError, RuntimeError) as error:
        raise MachineError(
            f"backbone.weights: the pre-trained weights of {timm_name} are not on this machine and cannot be "
            f"fetched ({type(error).__name__}: {str(error).splitlines()[0]}).\n"
            "  Connect to the network once, set backbone.weights to a local .safetensors or .pth file, or "
            "to random for a model that was not trained."
        ) from error
    return dict(model.state_dict())
