"""timm's ViTs as backbones: the fused qkv cut into named targets, features before the head."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import timm
import torch
from timm.layers.attention import Attention
from timm.models import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from replora.cache import Cached, cached_tensors
from replora.errors import ConfigError, MachineError
from replora.models import BACKBONES
from replora.models.base import Architecture, Target
from replora.models.prefix import Prefix
from replora.tasks.base import IMAGENET_MEAN, IMAGENET_STD

__all__ = [
    "VitFeatures",
    "timm_architecture",
    "unfuse_short_attention",
    "vit_attend",
    "vit_features",
    "vit_targets",
]

_NAMED = {
    "vit-ti16": "vit_tiny_patch16_224.augreg_in21k",
    "vit-s16": "vit_small_patch16_224.augreg_in21k",
    "vit-b16": "vit_base_patch16_224.augreg_in21k",
    "vit-l16": "vit_large_patch16_224.augreg_in21k",
}
_PREFIX = "timm/"
_SHORT_SEQUENCE = 64  # patches; choice: the next standard size, 196, is better off with the fused kernel


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


def unfuse_short_attention(model: nn.Module) -> None:
    """Plain attention where sequences are short: torch's fused CPU kernel is slower there.

    Measured at 17 tokens, forward and backward: 2.2 against 3.4 microseconds a head (docs/log.md).
    """
    if isinstance(model, VisionTransformer) and model.patch_embed.num_patches <= _SHORT_SEQUENCE:
        for module in model.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = False  # type: ignore[assignment]


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


def vit_targets(model: nn.Module) -> tuple[Target, ...]:
    """Query, key, value, output, up and down of every block, blocks in order.

    timm stacks the projections in one linear, `qkv.weight: [3 d, I]`: rows `[0, d)` make the
    queries, `[d, 2d)` the keys and `[2d, 3d)` the values; within each, heads follow one another.

    Raises:
        ConfigError: If a block is not built that way.
    """
    assert isinstance(model, VisionTransformer)
    return tuple(target for index in range(len(model.blocks)) for target in _block_targets(model, index))


def vit_attend(model: nn.Module, prefixes: Mapping[str, Prefix]) -> None:
    """Makes every attention of a private ViT see the prefix under its path (`Backbone.attend`).

    Raises:
        ConfigError: If a block has another attention than timm's plain one.
    """
    for path, module in list(model.named_modules()):
        if type(module) is Attention:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, _PrefixAttention(module, path, prefixes))
        elif hasattr(module, "qkv"):
            raise ConfigError(
                f"method.name: prefix needs timm's plain attention, but {path} of this backbone is a "
                f"{type(module).__name__}.\n  Choose another method or a plain ViT such as vit-b16."
            )


class _PrefixAttention(nn.Module):
    """timm's attention with further keys and values."""

    def __init__(self, attention: Attention, path: str, prefixes: Mapping[str, Prefix]) -> None:
        super().__init__()
        self.attention = attention
        self._path, self._prefixes = path, prefixes

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """`[K * B, T, d]` to `[K * B, T, d]`."""
        own, prefix = self.attention, self._prefixes[self._path]
        qkv = own.qkv(x).unflatten(2, (3, own.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = own.q_norm(qkv[0]), own.k_norm(qkv[1]), qkv[2]
        mask = prefix.sight.mask(query, x.shape[1], attn_mask, causal=is_causal)
        key, value = prefix.beside(key, value)
        if own.fused_attn:
            # A copy of the query alone, so that what backward keeps is not the whole qkv.
            seen = F.scaled_dot_product_attention(query.contiguous(), key, value, attn_mask=mask)
        else:
            scores = (query * own.scale) @ key.transpose(-2, -1)
            seen = (scores if mask is None else scores + mask).softmax(-1) @ value
        seen = own.norm(seen.transpose(1, 2).flatten(2))
        gated = seen if own.gate is None else seen * own.gate(x).sigmoid()
        out: Tensor = own.proj(gated)
        return out


def _block_targets(model: VisionTransformer, block: int) -> list[Target]:
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
