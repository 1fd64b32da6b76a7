"""From a backbone's configuration to the frozen backbone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, cast

import torch
from torch import nn

from replora.cache import Cached, hash_tensors
from replora.config import BackboneConfig
from replora.models.base import Architecture, Backbone
from replora.models.digits import digits_architecture
from replora.models.hub import checkpoint_folder, kind_of
from replora.models.shapes import BART, VIDEO_SWIN, is_language_model
from replora.models.vit import unfuse_short_attention
from replora.models.weights import assemble, random_weights, read_weights

__all__ = ["load_backbone"]

_DTYPES = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.bfloat16}


def load_backbone(
    config: BackboneConfig,
    *,
    precision: Literal["fp32", "fp64", "bf16"],
    device: torch.device | str,
    share: Callable[[nn.Parameter], None] | None = None,
) -> Backbone:
    """The frozen backbone, in evaluation mode on its device.

    Weights in fp32 on the CPU stay mapped from their file, so that processes of one machine share
    them; writing to them copies a page in memory and never reaches the file.

    Args:
        config: Which model, with which weights.
        precision: Of the weights.
        device: Where the model goes.
        share: Called with each weight of a checkpoint in transformers' form once it is read, to keep
            this process's part of it only; other models are read whole.

    Raises:
        ConfigError: If there is no such backbone, or its blocks cannot be adapted.
        CheckpointError: If a file of weights is missing, damaged or of another model.
        MachineError: If pre-trained weights are not on this machine and cannot be fetched.
    """
    if is_language_model(config.name):
        return _transformer(config, _DTYPES[precision], torch.device(device), share)
    architecture = _architecture(config.name)
    weights = _weights(config.weights, architecture)
    model = assemble(architecture.build, weights.tensors, f"backbone.weights {config.weights}")
    dtype = _DTYPES[precision]
    model.eval().requires_grad_(False).to(device=device, dtype=dtype)
    if torch.device(device).type == "cpu":
        unfuse_short_attention(model)
    return Backbone(
        name=config.name,
        model=model,
        targets=architecture.targets(model),
        features=architecture.features.to(device, dtype),
        width=int(cast("int", model.num_features)),
        fingerprint=weights.checksum,
        attend=architecture.attend,
    )


def _transformer(
    config: BackboneConfig,
    dtype: torch.dtype,
    device: torch.device,
    share: Callable[[nn.Parameter], None] | None,
) -> Backbone:
    """A model in transformers' form, told by its name or by its folder."""
    from replora.models.bart import bart_backbone
    from replora.models.language import language_backbone

    folder = checkpoint_folder(config)
    if config.name in BART or kind_of(folder) == "bart":
        return bart_backbone(config, folder, dtype, device, share)
    return language_backbone(config, folder, dtype, device, share)


def _architecture(name: str) -> Architecture:
    if name in VIDEO_SWIN:
        from replora.models.video import video_architecture  # torchvision, slow to import

        return video_architecture(name)
    if name == "vit-digits":
        return digits_architecture()
    from replora.models.timm_vit import timm_architecture  # slow to import, too

    return timm_architecture(name)


def _weights(chosen: str, architecture: Architecture) -> Cached:
    if chosen == "pretrained":
        return architecture.pretrained()
    if chosen == "random":
        tensors = random_weights(architecture.build)
    else:
        tensors = read_weights(Path(chosen).expanduser())
    return Cached(tensors, hash_tensors(tensors))
