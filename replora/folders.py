"""Where files go that outlive a run."""

from __future__ import annotations

import json
import os
from pathlib import Path

from replora.atomic import write_atomically
from replora.errors import MachineError

__all__ = ["cache_folder", "write_note"]


def cache_folder() -> Path:
    """Folder of cached files: `REPLORA_CACHE`, else `replora` in `XDG_CACHE_HOME` or `~/.cache`.

    Raises:
        MachineError: If this user has no home folder, as in some containers.
    """
    override = os.environ.get("REPLORA_CACHE")
    if override:
        return Path(override)
    base = os.environ.get("XDG_CACHE_HOME")
    if base:
        return Path(base) / "replora"
    try:
        return Path.home() / ".cache" / "replora"
    except RuntimeError as error:
        raise MachineError(
            "this user has no home folder. Set REPLORA_CACHE to a folder for cached files."
        ) from error


def write_note(path: Path, content: object) -> None:
    """Writes JSON to a file in the cache folder, whole or not at all.

    Raises:
        MachineError: If the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(content).encode())
    except OSError as error:
        raise MachineError(
            f"{path.parent}: the cache folder cannot be written ({error.strerror}).\n"
            "  Free some space, or set REPLORA_CACHE to a folder that can."
        ) from error
