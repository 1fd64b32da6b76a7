"""An adapter's own folder: `adapter_config.json` and `adapter.safetensors`, written whole or not at all.

The tensors are exactly what trained (generators once, not per layer), so loading resumes or bakes
without loss. `replora.methods.exchange.folders` turns the folder into plain LoRA or merged weights.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from replora.atomic import draft_of, sync_folder, write_atomically
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
    temporary = draft_of(folder)
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
    sync_folder(folder.parent)


def load_adapter(folder: Path) -> SavedAdapter:
    """Reads an adapter folder, all of it or nothing.

    Raises:
        AdapterError: If it is not one, or a file of it is damaged.
    """
    described = _read_description(folder)
    try:
        config = TypeAdapter(RunConfig).validate_python(described["run"])
        head_width, fingerprint = int(str(described["head_width"])), str(described["backbone_fingerprint"])
        parameters = int(str(described["parameters"]))
    except (KeyError, TypeError, ValueError) as error:
        raise AdapterError(f"{folder}/adapter_config.json: damaged: {error}") from error
    tensors = _read_tensors(folder)
    held = sum(tensor.numel() for tensor in tensors.values())
    if held != parameters:
        raise AdapterError(
            f"{folder}/adapter.safetensors: must hold {parameters:,} numbers, but holds {held:,}; "
            "the two files do not belong together"
        )
    return SavedAdapter(config, fingerprint, head_width, tensors)


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
        described = json.loads(path.read_bytes(), object_pairs_hook=_once)
    except OSError as error:
        raise AdapterError(
            f"{folder}: no adapter folder: adapter_config.json cannot be read: {error}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{path}: not JSON: {error}") from error
    if not isinstance(described, dict) or described.get("format") != FORMAT:
        found = described.get("format") if isinstance(described, dict) else type(described).__name__
        hint = ""
        if isinstance(described, dict) and "peft_type" in described:
            hint = "\n  This is a folder of PEFT: open it with peft.PeftModel.from_pretrained."
        raise AdapterError(f"{path}: format must be {FORMAT!r}, but got {found!r}{hint}")
    return described


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object of JSON; two values under one name could be read as either."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is there twice")
    return found


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    path = folder / "adapter.safetensors"
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{path}: cannot be read: {error}{_about_pickles(path)}") from error
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
            raise AdapterError(f"{path}: {name} must hold finite numbers, but has others ({tensor.dtype})")
    return dict(tensors)


def _about_pickles(path: Path) -> str:
    """What to say of a pickle in the place of safetensors; none is ever opened, for it can run code."""
    found = [each.name for each in sorted(path.parent.iterdir()) if each.suffix in _PICKLES]
    if path.is_file():
        with path.open("rb") as file:
            found = [path.name] if file.read(4).startswith(_PICKLE_STARTS) else []
    if not found:
        return ""
    return f"\n  {', '.join(found)} is a pickle: it can run code and is not opened; ask for safetensors."


_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # torch's zip; protocols
