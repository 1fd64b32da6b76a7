"""From a backbone's configuration to the frozen backbone."""

from __future__ import annotations

from typing import Literal

import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

from replora.cache import hash_tensors
from replora.config import BackboneConfig
from replora.models.base import Backbone
from replora.models.digits import build_digits_vit, digits_weights
from replora.models.vision import vit_features, vit_targets

__all__ = ["load_backbone"]

_DTYPES = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.bfloat16}


def load_backbone(
    config: BackboneConfig, *, precision: Literal["fp32", "fp64", "bf16"], device: torch.device | str
) -> Backbone:
    """The frozen backbone, in evaluation mode on its device.

    Weights in fp32 on the CPU stay mapped from their file, so that processes of one machine share
    them; writing to them copies the page and never reaches the file.

    Args:
        config: Which model, with which weights.
        precision: Of the weights.
        device: Where the model goes.
    """
    with torch.device("meta"):
        model = build_digits_vit()
    weights = digits_weights()
    model.load_state_dict(weights, assign=True)
    model.eval().requires_grad_(False)
    fingerprint = hash_tensors(weights)
    model.to(device=device, dtype=_DTYPES[precision])
    return Backbone(config.name, model, vit_targets(model), vit_features, model.num_features, fingerprint)
