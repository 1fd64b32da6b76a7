"""torchvision's Video Swin as a backbone: named targets in every stage, features before the head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights
from torchvision.models.swin_transformer import SwinTransformerBlock
from torchvision.models.video.swin_transformer import SwinTransformer3d

from replora.cache import Cached, cached_tensors
from replora.errors import ConfigError, MachineError
from replora.models.base import Architecture, Target
from replora.models.shapes import VIDEO_SWIN, VideoSwinShape
from replora.models.windows import attend_in_windows, call_linears

__all__ = ["ClipFeatures", "video_architecture", "video_targets"]

#: torchvision's builders; what is not here has no published weights.
_BUILDERS = {"video-swin-t": "swin3d_t", "video-swin-s": "swin3d_s", "video-swin-b": "swin3d_b"}
_PARTS = {"output": "attn.proj", "up": "mlp.0", "down": "mlp.3"}


def video_architecture(name: str) -> Architecture:
    """One of `VIDEO_SWIN` as `load_backbone` wants it."""
    shape = VIDEO_SWIN[name]
    pretrained = partial(_pretrained, name)
    return Architecture(partial(_build, shape), ClipFeatures(), video_targets, pretrained, attend_in_windows)


@dataclass(frozen=True)
class ClipFeatures:
    """Pooled features before the head: `video [rows, C, T, H, W]` to `[rows, width]`."""

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Features of a batch's `video`; clips of any length and size serve.

        Raises:
            ConfigError: If the task gives no clips.
        """
        if "video" not in batch:
            raise ConfigError(
                f"the backbone takes clips, but the task gives {', '.join(batch)}.\n"
                "  Choose a backbone for the task, or a task for the backbone (`replora ls`)."
            )
        features: Tensor = model(batch["video"])
        return features

    def to(self, device: torch.device | str, dtype: torch.dtype) -> ClipFeatures:
        """The same: nothing here depends on device or type."""
        return self


def video_targets(model: nn.Module) -> tuple[Target, ...]:
    """Query, key, value, output, up and down of every block, counted through all stages.

    As in timm's ViTs, rows `[0, d)` of `qkv.weight: [3 d, d]` make the queries, `[d, 2 d)` the keys and
    `[2 d, 3 d)` the values; within each, heads follow one another.
    """
    blocks = [(p, m) for p, m in model.named_modules() if isinstance(m, SwinTransformerBlock)]
    return tuple(t for index, (path, block) in enumerate(blocks) for t in _block_targets(index, path, block))


def _block_targets(index: int, path: str, block: SwinTransformerBlock) -> list[Target]:
    width, heads = block.attn.qkv.in_features, block.attn.num_heads
    targets = [
        Target(name, index, f"{path}.attn.qkv", (part * width, (part + 1) * width), width, heads)
        for part, name in enumerate(("query", "key", "value"))
    ]
    for name, part in _PARTS.items():
        linear = block.get_submodule(part)
        targets.append(Target(name, index, f"{path}.{part}", (0, linear.out_features), linear.in_features))
    return targets


def _build(shape: VideoSwinShape) -> nn.Module:
    """The model without a head; stochastic depth and dropout are off, as everywhere in this project."""
    model: nn.Module = SwinTransformer3d(
        patch_size=list(shape.patch),
        embed_dim=shape.embed,
        depths=list(shape.depths),
        num_heads=list(shape.heads),
        window_size=list(shape.window),
        stochastic_depth_prob=0.0,
        num_classes=1,
    )
    model.head = nn.Identity()
    call_linears(model)
    return model


def _pretrained(name: str) -> Cached:
    """Kinetics-400 weights of torchvision."""
    if name not in _BUILDERS:
        raise MachineError(
            f"backbone.weights: {name} has no published weights.\n"
            "  Set backbone.weights to random, or to a local .safetensors or .pth file."
        )
    weights = get_model_weights(_BUILDERS[name]).KINETICS400_V1
    recipe = {"version": 1, "url": weights.url}
    return cached_tensors("torchvision", recipe, partial(_download, name, weights))


def _download(name: str, weights: object) -> dict[str, Tensor]:
    try:
        found: dict[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True)  # type: ignore[attr-defined]
    except (OSError, RuntimeError) as error:
        raise MachineError(
            f"backbone.weights: the pre-trained weights of {name} are not on this machine and cannot be "
            f"fetched ({type(error).__name__}: {str(error).splitlines()[0]}).\n"
            "  Connect to the network once, set backbone.weights to a local .safetensors or .pth file, or "
            "to random for a model that was not trained."
        ) from error
    return {key: tensor for key, tensor in found.items() if not key.startswith("head.")}
