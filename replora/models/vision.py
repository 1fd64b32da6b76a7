"""timm's ViTs as backbones: the fused qkv cut into named targets, features before the head."""

from __future__ import annotations

from collections.abc import Mapping

from timm.models import VisionTransformer
from torch import Tensor, nn

from replora.errors import ConfigError
from replora.models.base import Target

__all__ = ["vit_features", "vit_targets"]


def vit_targets(model: VisionTransformer) -> tuple[Target, ...]:
    """Query, key, value, output, up and down of every block, blocks in order.

    timm stacks the projections in one linear, `qkv.weight: [3 d, I]`: rows `[0, d)` make the
    queries, `[d, 2d)` the keys and `[2d, 3d)` the values; within each, heads follow one another.

    Raises:
        ConfigError: If a block is not built that way.
    """
    targets: list[Target] = []
    for index, block in enumerate(model.blocks):
        path = f"blocks.{index}"
        qkv = _linear(block, path, "attn.qkv")
        heads = int(block.attn.num_heads)
        width = qkv.out_features // 3
        for part, name in enumerate(("query", "key", "value")):
            rows = (part * width, (part + 1) * width)
            targets.append(Target(name, index, f"{path}.attn.qkv", rows, qkv.in_features, heads))
        for name, module in (("output", "attn.proj"), ("up", "mlp.fc1"), ("down", "mlp.fc2")):
            linear = _linear(block, path, module)
            targets.append(Target(name, index, f"{path}.{module}", (0, linear.out_features), linear.in_features))
    return tuple(targets)


def vit_features(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Pooled features before the head: `image [rows, channels, H, W]` to `[rows, width]`."""
    features: Tensor = model.forward_head(model.forward_features(batch["image"]), pre_logits=True)
    return features


def _linear(block: nn.Module, path: str, module: str) -> nn.Linear:
    try:
        found = block.get_submodule(module)
    except AttributeError:
        found = None
    if not isinstance(found, nn.Linear):
        raise ConfigError(
            f"{path}.{module} of this timm model is not a linear layer, so its blocks cannot be adapted.\n"
            "  Use a plain ViT, for example vit-b16 or timm/vit_base_patch16_224.augreg_in21k."
        )
    return found
