"""Weights into a model: from a file of the user, at random, or from the cache; whole or not at all."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from replora.cache import read_tensors
from replora.errors import CheckpointError

__all__ = ["assemble", "random_weights", "read_weights"]

_RANDOM_SEED = 0  # choice; a constant, so that every process makes the same base
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")
_HEADS = ("head.", "head_dist.")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Weights of a local file without the classifier head, whatever its number of classes.

    Args:
        path: A .safetensors file, or a .pth, .pt or .bin that timm or torch wrote; the latter is read
            weights-only, so it cannot run code.

    Raises:
        CheckpointError: If the file is missing, damaged or holds something else.
    """
    if not path.is_file():
        raise CheckpointError(
            f"backbone.weights: {path} is not a file.\n"
            "  It must be pretrained, random, or the path of a .safetensors, .pth, .pt or .bin file."
        )
    found = read_tensors(path)[0] if path.suffix == ".safetensors" else _unwrapped(_read_torch(path))
    tensors = {_bare(name): value for name, value in found.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensors by name, so it is not a checkpoint of a model.")
    return {name: value for name, value in tensors.items() if not name.startswith(_HEADS)}


def random_weights(build: Callable[[], nn.Module]) -> dict[str, Tensor]:
    """Weights as the architecture starts, always the same; the caller's random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_RANDOM_SEED)
        return dict(build().state_dict())


def assemble(build: Callable[[], nn.Module], weights: Mapping[str, Tensor], source: str) -> nn.Module:
    """The model on exactly these tensors, without a copy.

    It is built on the meta device, so no memory is spent on a start that is thrown away, and tensors
    that are mapped from a file stay mapped: processes of one machine share their pages.

    Args:
        build: Builds the model.
        weights: All of its parameters and buffers.
        source: Where the weights come from, for the message.

    Raises:
        CheckpointError: If a tensor is missing, unknown or of another shape; all are named.
    """
    with torch.device("meta"):
        model = build()
    faults = _faults(model.state_dict(), weights)
    if faults:
        more = f"\n  and {len(faults) - 6} more" if len(faults) > 6 else ""
        raise CheckpointError(
            f"{source}: these weights do not fit the backbone:\n  " + "\n  ".join(faults[:6]) + more
        )
    model.load_state_dict(dict(weights), assign=True)
    left = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    if left:
        raise CheckpointError(f"{source}: the backbone keeps {', '.join(left)} outside of its checkpoints")
    return model


def _faults(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    missing = [f"{name} is missing" for name in wanted if name not in found]
    unknown = [f"{name} is not a tensor of the backbone" for name in found if name not in wanted]
    misshapen = [
        f"{name} must be {list(each.shape)}, but got {list(found[name].shape)}"
        for name, each in wanted.items()
        if name in found and found[name].shape != each.shape
    ]
    return misshapen + missing + unknown


def _read_torch(path: Path) -> Any:
    try:
        # A zip file can be mapped; the format before torch 1.6 cannot.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise CheckpointError(
            f"{path}: cannot be read as weights ({reason[0]}).\n"
            "  It must be a whole file of tensors; files that need more than weights to load are refused."
        ) from error


def _unwrapped(content: Any) -> Mapping[str, Any]:
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    return content if isinstance(content, Mapping) else {}


def _bare(name: str) -> str:
    while name.startswith(_PREFIXES):
        name = name.split(".", 1)[1]
    return name
