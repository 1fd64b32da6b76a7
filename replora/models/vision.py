"""ViTs as backbones: the fused qkv cut into named targets, features before the head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from replora.errors import ConfigError
from replora.models.base import Target
from replora.models.prefix import Prefix
from replora.models.vit import VitAttention

__all__ = ["VitFeatures", "vit_attend", "vit_features", "vit_targets"]


@dataclass(frozen=True)
class VitFeatures:
    """`vit_features` of images of the right shape, in the normalization of the model's pre-training.

    Attributes:
        image: Channels, height and width that the model takes.
        scale: Per channel, to go from the task's normalization to the one of the model's
            pre-training; None where they are the same.
        shift: Likewise.
    """

    image: tuple[int, int, int]
    scale: Tensor | None = None
    shift: Tensor | None = None

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Features of a batch's `image`.

        Raises:
            ConfigError: If the task gives no images, or of another shape than the model takes.
        """
        if "image" not in batch:
            raise ConfigError(
                f"the backbone takes images, but the task gives {', '.join(batch)}.\n"
                "  Choose a backbone for the task, or a task for the backbone (`replora ls`)."
            )
        image = batch["image"]
        if tuple(image.shape[1:]) != self.image:
            raise ConfigError(
                f"the backbone takes images of {self.image} (channels, height, width), but the task gives "
                f"{tuple(image.shape[1:])}.\n  Choose another backbone, or set task.image_size to fit it."
            )
        if self.scale is not None and self.shift is not None:
            image = image * self.scale + self.shift
        return vit_features(model, {"image": image})

    def to(self, device: torch.device | str, dtype: torch.dtype) -> VitFeatures:
        """The same for images on a device and of a type."""
        if self.scale is None or self.shift is None:
            return self
        return VitFeatures(self.image, self.scale.to(device, dtype), self.shift.to(device, dtype))


def vit_features(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Pooled features before the head of a timm ViT: `image [rows, channels, H, W]` to `[rows, width]`."""
    tokens = model.forward_features(batch["image"])  # type: ignore[operator]
    features: Tensor = model.forward_head(tokens, pre_logits=True)  # type: ignore[operator]
    return features


def vit_targets(model: nn.Module) -> tuple[Target, ...]:
    """Query, key, value, output, up and down of every block, blocks in order.

    timm stacks the projections in one linear, `qkv.weight: [3 d, I]`: rows `[0, d)` make the
    queries, `[d, 2d)` the keys and `[2d, 3d)` the values; within each, heads follow one another.

    Raises:
        ConfigError: If a block is not built that way.
    """
    blocks = len(model.get_submodule("blocks"))  # type: ignore[arg-type]
    return tuple(target for index in range(blocks) for target in _block_targets(model, index))


def vit_attend(model: nn.Module, prefixes: Mapping[str, Prefix]) -> None:
    """Makes every attention of a private ViT see the prefix under its path (`Backbone.attend`).

    Raises:
        ConfigError: If a block has another attention than the plain one.
    """
    for path, module in model.named_modules():
        if isinstance(module, VitAttention):
            module.see(prefixes, path)
        elif hasattr(module, "qkv"):
            raise ConfigError(
                f"method.name: prefix needs a ViT's plain attention, but {path} of this backbone is a "
                f"{type(module).__name__}.\n  Choose another method or a plain ViT such as vit-b16."
            )


def _block_targets(model: nn.Module, block: int) -> list[Target]:
    path = f"blocks.{block}"
    qkv = _linear(model, f"{path}.attn.qkv")
    heads = int(model.get_submodule(f"{path}.attn").num_heads)  # type: ignore[arg-type]
    width = qkv.out_features // 3
    targets = [
        Target(name, block, f"{path}.attn.qkv", (part * width, (part + 1) * width), qkv.in_features, heads)
        for part, name in enumerate(("query", "key", "value"))
    ]
    for name, module in (("output", "attn.proj"), ("up", "mlp.fc1"), ("down", "mlp.fc2")):
        linear = _linear(model, f"{path}.{module}")
        rows = (0, linear.out_features)
        targets.append(Target(name, block, f"{path}.{module}", rows, linear.in_features))
    return targets


def _linear(model: nn.Module, path: str) -> nn.Linear:
    try:
        found: nn.Module | None = model.get_submodule(path)
    except AttributeError:
        found = None
    if not isinstance(found, nn.Linear):
        raise ConfigError(
            f"backbone.name: {path} of this model is not a linear layer, so its blocks cannot be adapted.\n"
            "  Use a plain ViT, for example vit-b16 or timm/vit_base_patch16_224.augreg_in21k."
        )
    return found
