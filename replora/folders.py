"""Where files go that outlive a run."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_folder"]


def cache_folder() -> Path:
    """Folder of cached files: `REPLORA_CACHE`, else `replora` in `XDG_CACHE_HOME` or `~/.cache`."""
    override = os.environ.get("REPLORA_CACHE")
    if override:
        return Path(override)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "replora"
