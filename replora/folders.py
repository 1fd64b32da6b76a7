"""Where files go that outlive a run."""

from __future__ import annotations

import os
from pathlib import Path

from replora.errors import MachineError

__all__ = ["cache_folder"]


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
