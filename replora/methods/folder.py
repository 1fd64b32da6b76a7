"""An adapter's own folder: `adapter_config.json` and `adapter.safetensors`, written whole or not at all.

The tensors are exactly what trained (generators once, not per layer), so loading resumes or bakes
without loss. `replora.methods.exchange.folders` turns the folder into plain LoRA or merged weights.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from replora.atomic import write_atomically
from replora.config import RunConfig
from replora.errors import AdapterError
from replora.methods.layout import Shapes

__all__ = ["SavedAdapter", "check_tensors", "load_adapter", "save_adapter"]

FORMAT = "replora-adapter/1"


@dataclass(frozen=True)
class SavedAdapter:
    """What an adapter folder holds.

    Attributes:
        config: The run that made it.
        backbone_fingerprint: Of the base it was trained on.
        head_width: Outputs of the task head, or 0 for none.
        tensors: Trained tensors by name, in the method's own shapes.
    """

    config: RunConfig
    backbone_fingerprint: str
    head_width: int
    tensors: dict[str, Tensor]


def save_adapter(folder: Path, adapter: SavedAdapter) -> None:
    """Writes the folder under a temporary name and renames it into place; an older one is replaced."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    described = {
        "format": FORMAT,
        "run": adapter.config.model_dump(mode="json"),
        "backbone_fingerprint": adapter.backbone_fingerprint,
        "head_width": adapter.head_width,
        "parameters": sum(tensor.numel() for tensor in adapter.tensors.values()),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in adapter.tensors.items()}
    write_atomically(temporary / "adapter.safetensors", save(tensors))
    write_atomically(temporary / "adapter_config.json", json.dumps(described, indent=2).encode() + b"\n")
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def load_adapter(folder: Path) -> SavedAdapter:
    """Reads an adapter folder.

    Raises:
        AdapterError: If it is not one, or a file of it is damaged.
    """
    described = _read_description(folder)
    try:
        config = TypeAdapter(RunConfig).validate_python(described["run"])
        tensors: Mapping[str, Tensor] = load_file(folder / "adapter.safetensors")
        head_width, fingerprint = int(str(described["head_width"])), str(described["backbone_fingerprint"])
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        raise AdapterError(f"{folder}/adapter_config.json: damaged: {error}") from error
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{folder}/adapter.safetensors: cannot be read: {error}") from error
    return SavedAdapter(config, fingerprint, head_width, dict(tensors))


def check_tensors(wanted: Shapes, tensors: Mapping[str, Tensor]) -> None:
    """Refuses tensors that are not exactly those of a method.

    Raises:
        AdapterError: Naming the first that is missing, unknown, of another shape or not finite.
    """
    for name in sorted(wanted.keys() | tensors.keys()):
        shape = list(wanted[name]) if name in wanted else "nothing"
        found = list(tensors[name].shape) if name in tensors else "nothing"
        if shape != found:
            raise AdapterError(
                f"adapter tensor {name}: must be {shape}, but got {found}.\n"
                "  The adapter was made with another method or on another base."
            )
        if not torch.isfinite(tensors[name]).all():
            raise AdapterError(f"adapter tensor {name}: has NaN or infinite numbers")


def _read_description(folder: Path) -> dict[str, object]:
    path = folder / "adapter_config.json"
    try:
        described = json.loads(path.read_bytes())
    except OSError as error:
        raise AdapterError(
            f"{folder}: no adapter folder: adapter_config.json cannot be read: {error}"
        ) from error
    except ValueError as error:
        raise AdapterError(f"{path}: not JSON: {error}") from error
    if not isinstance(described, dict) or described.get("format") != FORMAT:
        found = described.get("format") if isinstance(described, dict) else type(described).__name__
        raise AdapterError(f"{path}: format must be {FORMAT!r}, but got {found!r}")
    return described
