"""From a backbone's configuration to the frozen backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from replora.cache import Cached, hash_tensors
from replora.config import BackboneConfig
from replora.models.base import Backbone
from replora.models.digits import digits_architecture
from replora.models.shapes import is_language_model
from replora.models.vision import Architecture, timm_architecture, unfuse_short_attention, vit_targets
from replora.models.weights import assemble, random_weights, read_weights

__all__ = ["load_backbone"]

_DTYPES = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.bfloat16}


def load_backbone(
    config: BackboneConfig, *, precision: Literal["fp32", "fp64", "bf16"], device: torch.device | str
) -> Backbone:
    """The frozen backbone, in evaluation mode on its device.

    Weights in fp32 on the CPU stay mapped from their file, so that processes of one machine share
    them; writing to them copies a page in memory and never reaches the file.

    Args:
        config: Which model, with which weights.
        precision: Of the weights.
        device: Where the model goes.

    Raises:
        ConfigError: If there is no such backbone, or its blocks cannot be adapted.
        CheckpointError: If a file of weights is missing, damaged or of another model.
        MachineError: If pre-trained weights are not on this machine and cannot be fetched.
    """
    if is_language_model(config.name):
        from replora.models.language import language_backbone  # transformers, slow to import

        return language_backbone(config, _DTYPES[precision], torch.device(device))
    architecture = digits_architecture() if config.name == "vit-digits" else timm_architecture(config.name)
    weights = _weights(config.weights, architecture)
    model = assemble(architecture.build, weights.tensors, f"backbone.weights {config.weights}")
    dtype = _DTYPES[precision]
    model.eval().requires_grad_(False).to(device=device, dtype=dtype)
    if torch.device(device).type == "cpu":
        unfuse_short_attention(model)
    return Backbone(
        name=config.name,
        model=model,
        targets=vit_targets(model),
        features=architecture.features.to(device, dtype),
        width=int(model.num_features),
        fingerprint=weights.checksum,
    )


def _weights(chosen: str, architecture: Architecture) -> Cached:
    if chosen == "pretrained":
        return architecture.pretrained()
    if chosen == "random":
        tensors = random_weights(architecture.build)
    else:
        tensors = read_weights(Path(chosen).expanduser())
    return Cached(tensors, hash_tensors(tensors))
