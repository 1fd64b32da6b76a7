"""Sharded safetensors into a model on the meta device, one tensor at a time."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from replora.cache import add_sample
from replora.errors import CheckpointError

__all__ = ["load_checkpoint", "start_at_random"]

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
#: Buffers that old checkpoints keep and models make anew.
_IGNORED = "rotary_emb.inv_freq"
_RANDOM_SEED, _DEVIATION = 0, 0.02  # choice; a constant, so that every process makes the same base


def load_checkpoint(
    model: nn.Module,
    folder: Path,
    dtype: torch.dtype,
    device: torch.device,
    share: Callable[[nn.Parameter], None] | None = None,
) -> str:
    """Fills a model that is on the meta device; returns the fingerprint of the weights in the files.

    Each tensor goes from the mapped file to the device in its type before the next is read. On the CPU,
    in the file's own type, tensors stay mapped, so that processes of one machine share them.

    Args:
        model: On the meta device.
        folder: With `model.safetensors`, or an index and its shards.
        dtype: Of the weights in the model.
        device: Of the weights in the model.
        share: Called with each parameter once it is read, to keep a part of it only: no process then
            ever holds more than its part and one tensor.

    Raises:
        CheckpointError: If a file is missing or damaged, or a tensor is missing, unknown or misshapen.
    """
    wanted, digest = model.state_dict(), hashlib.sha256()
    prefix = str(getattr(model, "base_model_prefix", ""))
    faults: list[str] = []
    for name, tensor in _tensors(folder):
        if name.endswith(_IGNORED):
            continue
        if name not in wanted and f"{prefix}.{name}" in wanted:
            name = f"{prefix}.{name}"  # saved from the model without its head, as facebook/bart-base
        if name not in wanted:
            faults.append(f"{name} is not a tensor of the backbone")
        elif tensor.shape != wanted[name].shape:
            faults.append(f"{name} must be {list(wanted[name].shape)}, but got {list(tensor.shape)}")
        else:
            add_sample(digest, name, tensor)
            placed = _put(model, name, tensor.to(device, dtype))
            if share is not None and isinstance(placed, nn.Parameter):
                share(placed)
    model.tie_weights()  # type: ignore[operator]
    _make_buffers(model, device)
    faults += [f"{name} is missing" for name, each in model.state_dict().items() if each.is_meta]
    if faults:
        more = f"\n  and {len(faults) - 6} more" if len(faults) > 6 else ""
        raise CheckpointError(
            f"{folder}: these weights do not fit the backbone:\n  " + "\n  ".join(faults[:6]) + more
        )
    return f"sha256:{digest.hexdigest()[:16]}"


def start_at_random(model: nn.Module, device: torch.device) -> None:
    """Random weights for a model on the meta device: matrices normal, norms one, biases zero."""
    generator = torch.Generator(device).manual_seed(_RANDOM_SEED)
    for name, parameter in list(model.named_parameters()):
        weight = torch.empty_like(parameter, device=device)
        if weight.dim() > 1:
            weight.normal_(0.0, _DEVIATION, generator=generator)
        else:
            weight.fill_(0.0 if name.endswith("bias") else 1.0)
        _put(model, name, weight)
    model.tie_weights()  # type: ignore[operator]
    _make_buffers(model, device)


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a checkpoint, in order of names."""
    index = _index(folder)
    for file in sorted(set(index.values())):
        with _opened(folder / file) as opened:
            for name in sorted(opened.keys()):
                yield name, opened.get_tensor(name)


def _index(folder: Path) -> Mapping[str, str]:
    """Tensor name -> file in the folder."""
    path = folder / _INDEX
    if not path.exists():
        if (folder / _SINGLE).exists():
            return {"": _SINGLE}
        other = [each.name for each in sorted(folder.glob("*.bin"))]
        cure = (
            f"It has {other[0]}; convert it once: AutoModelForCausalLM.from_pretrained(folder)"
            ".save_pretrained(new_folder) writes safetensors."
            if other
            else "Set backbone.weights to the folder of a whole checkpoint, or to random."
        )
        raise CheckpointError(f"{folder}: holds neither {_SINGLE} nor {_INDEX}.\n  {cure}")
    try:
        files = json.loads(path.read_bytes())["weight_map"]
        checked = {str(name): str(file) for name, file in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: is not an index of safetensors files ({error}).") from error
    outside = [file for file in checked.values() if Path(file).name != file]
    if outside:
        raise CheckpointError(f"{path}: names {outside[0]!r}, which is not a file of its own folder.")
    return checked


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read as a safetensors file: {error}") from error


def _put(model: nn.Module, name: str, tensor: Tensor) -> Tensor:
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if leaf in module._parameters:
        tensor = nn.Parameter(tensor, requires_grad=False)
        setattr(module, leaf, tensor)
    else:
        module._buffers[leaf] = tensor
    return tensor


def _make_buffers(model: nn.Module, device: torch.device) -> None:
    """Buffers that checkpoints do not keep (rotary frequencies), from a fresh module of the same kind."""
    for module in model.modules():
        left = [name for name, buffer in module._buffers.items() if buffer is not None and buffer.is_meta]
        if left and hasattr(module, "config"):
            made = type(module)(copy.deepcopy(module.config)).to(device)
            for name in left:
                module._buffers[name] = made._buffers[name]
    left = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    if left:
        raise CheckpointError(f"the backbone keeps {', '.join(left)} outside of its checkpoints")
