"""Tensors that are made once on a machine and read by every later process.

A cached file is named by the hash of its recipe, so another recipe is another file. Its checksum
travels in the file and is verified on every read; reading maps the file, so that all processes of a
machine share its pages, copy-on-write.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from replora.errors import CheckpointError, MachineError
from replora.folders import cache_folder

__all__ = [
    "Cached",
    "Recipe",
    "add_sample",
    "cached_tensors",
    "hash_samples",
    "hash_tensors",
    "read_tensors",
]

_log = logging.getLogger(__name__)
#: Numbers of each end of a tensor that a sample hash reads (choice): all of a 13B model takes a minute.
_SAMPLE = 4096
Recipe = Mapping[str, int | float | str]


class Cached(NamedTuple):
    """Tensors by name with their `hash_tensors`."""

    tensors: dict[str, Tensor]
    checksum: str


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """`sha256:` and the first 16 hex digits over names, types, shapes and bytes, in order of names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{len(name)}:{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        content: Any = tensor.reshape(-1).view(torch.uint8).numpy()  # bf16 has no numpy type
        digest.update(content)
    return f"sha256:{digest.hexdigest()[:16]}"


def hash_samples(tensors: Mapping[str, Tensor]) -> str:
    """`sha256:` and 16 hex digits over names, types, shapes and both ends of every tensor's content."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        add_sample(digest, name, tensors[name])
    return f"sha256:{digest.hexdigest()[:16]}"


def add_sample(digest: Any, name: str, tensor: Tensor) -> None:
    """Adds a tensor's name, type, shape and both ends of its content to a hash."""
    digest.update(f"{len(name)}:{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
    numbers = tensor.detach().reshape(-1)
    for part in (numbers[:_SAMPLE], numbers[-_SAMPLE:]):
        digest.update(part.cpu().contiguous().view(torch.uint8).numpy())


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors of a safetensors file, mapped and not copied, with the file's metadata.

    Raises:
        CheckpointError: If the file is not there or not whole.
    """
    try:
        with safe_open(path, "pt") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read as a safetensors file: {error}") from error


def cached_tensors(kind: str, recipe: Recipe, build: Callable[[], Mapping[str, Tensor]]) -> Cached:
    """Tensors that `build` makes from `recipe`, built at most once on a machine.

    A damaged file is noticed by its checksum and built again. Processes that ask at once wait for
    the one that builds.

    Args:
        kind: First part of the file's name.
        recipe: Everything that the content depends on; its hash is the second part of the name.
        build: Makes the tensors.

    Returns:
        The tensors, mapped from the file, and their hash.

    Raises:
        MachineError: If the cache folder cannot be written.
    """
    key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
    path = cache_folder() / f"{kind}-{key}.safetensors"
    if path.exists() and isinstance(found := _verified(path), Cached):
        return found
    with _lock(path):
        # Another process may have built it while this one waited.
        if path.exists():
            if isinstance(found := _verified(path), Cached):
                return found
            _log.warning("%s: building it again", found)
        return _write(path, build(), recipe)


def _verified(path: Path) -> Cached | str:
    """The content of a file, or what is wrong with it."""
    try:
        tensors, metadata = read_tensors(path)
    except CheckpointError as error:
        return str(error)
    checksum = hash_tensors(tensors)
    return Cached(tensors, checksum) if metadata.get("checksum") == checksum else f"{path}: wrong checksum"


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_suffix(".lock").open("a")
    except OSError as error:
        raise MachineError(
            f"{path.parent}: the cache folder cannot be written ({error}).\n"
            "  Set REPLORA_CACHE to a folder that can."
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file closes, also when the process dies
        yield


def _write(path: Path, tensors: Mapping[str, Tensor], recipe: Recipe) -> Cached:
    checksum = hash_tensors(tensors)
    metadata = {"checksum": checksum, "recipe": json.dumps(recipe, sort_keys=True)}
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        save_file({name: each.contiguous() for name, each in tensors.items()}, draft, metadata)
        draft.replace(path)
    except (OSError, SafetensorError) as error:
        raise MachineError(
            f"{path}: the cached file cannot be written ({error}).\n"
            "  Free some space, or set REPLORA_CACHE to another folder."
        ) from error
    finally:
        draft.unlink(missing_ok=True)
    return Cached(read_tensors(path)[0], checksum)
