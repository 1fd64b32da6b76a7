"""Files that exist whole or not at all, whatever kills the process."""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path

__all__ = ["draft_of", "sync_folder", "write_atomically"]


def draft_of(path: Path) -> Path:
    """A new name beside `path`, which no other process takes.

    A process number is not enough: containers that share a folder have the same numbers.
    """
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def write_atomically(path: Path, content: bytes) -> None:
    """Writes next to `path`, flushes to disk, renames over it; on failure the old file stays.

    The new name, too, is on disk when this returns.
    """
    temporary = draft_of(path)
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # the name that the caller knows
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flushes the names in a folder to disk; a renamed file may otherwise be gone after a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems flush no folders
            raise
    finally:
        os.close(handle)
