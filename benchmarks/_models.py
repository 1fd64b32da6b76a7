"""Backbones with random weights and random data: speed and memory do not depend on the values."""

from __future__ import annotations

from collections.abc import Mapping

import timm
import torch
from timm.models import VisionTransformer
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

from replora.models.base import Backbone, Target
from replora.models.timm_vit import run_own_blocks
from replora.models.transformer_prefix import transformer_attend
from replora.models.vision import vit_features, vit_targets
from replora.tasks.base import SplitName
from replora.tasks.classification import Classification

__all__ = ["RandomSplit", "llama_30m", "random_task", "random_vit"]


NO_FINGERPRINT = "sha256:" + 16 * "0"


class RandomSplit:
    """A fixed set of random examples under one input key."""

    def __init__(self, key: str, inputs: Tensor, classes: int) -> None:
        self._tensors = {key: inputs, "label": torch.arange(len(inputs)) % classes}

    def __len__(self) -> int:
        return len(self._tensors["label"])

    def take(self, indices: Tensor, generator: torch.Generator | None) -> dict[str, Tensor]:
        """Examples at `indices`."""
        return {name: value[indices] for name, value in self._tensors.items()}


def random_task(key: str, inputs: Tensor, classes: int = 5) -> Classification:
    """A classification task whose splits all hold the same inputs with arbitrary labels."""
    split = RandomSplit(key, inputs, classes)
    names: tuple[SplitName, ...] = ("train", "val", "test")
    labels = tuple(f"class{index}" for index in range(classes))
    return Classification(dict.fromkeys(names, split), labels, "random", evaluation_batch=8)


def random_vit(name: str, image_size: int = 224) -> Backbone:
    """A timm ViT of a known shape with random weights."""
    torch.manual_seed(0)
    model = timm.create_model(name, img_size=image_size, num_classes=0).eval().requires_grad_(False)
    if not isinstance(model, VisionTransformer):
        raise TypeError(f"{name} must be a plain ViT of timm, but it is a {type(model).__name__}")
    run_own_blocks(model)
    return Backbone(name, model, vit_targets(model), vit_features, model.num_features, NO_FINGERPRINT)


def llama_30m(layers: int = 8) -> Backbone:
    """A Llama of 29.9 million parameters (width 512, feed-forward 1408, 8 layers, vocabulary 8192).

    Its features are the last token's, so the head is a linear layer as everywhere else.
    """
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        use_cache=False,
    )
    model = LlamaModel(config).eval().requires_grad_(False)
    targets = []
    for block in range(layers):
        for name in ("query", "key", "value"):
            path = f"layers.{block}.self_attn.{name[0]}_proj"
            targets.append(Target(name, block, path, (0, 512), 512, 8))
        targets.append(Target("down", block, f"layers.{block}.mlp.down_proj", (0, 512), 1408))
    features, attend = _last_token, transformer_attend
    return Backbone("llama-30m", model, targets, features, 512, NO_FINGERPRINT, attend=attend)


def _last_token(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    hidden: Tensor = model(input_ids=batch["tokens"]).last_hidden_state
    return hidden[:, -1]
