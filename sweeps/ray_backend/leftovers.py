"""What a driver that was killed with SIGKILL leaves of its private Ray: found and removed by the next one.

Ray's own processes end with their driver, but its two agents outlive it (seen with Ray 2.60), and so
does the temporary folder. The folder's name holds the driver's process id; processes of its session
keep log files in it open.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

__all__ = ["new_folder", "remove_leftovers"]

_PREFIX = "replora-"


def new_folder(parent: Path) -> Path:
    """A temporary folder of this process, for Ray's files and Tune's."""
    return Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=parent))


def remove_leftovers(parent: Path) -> None:
    """Ends the processes and removes the folders of this user's drivers that are no more."""
    for folder in parent.glob(f"{_PREFIX}*-*"):
        owner = folder.name.split("-")[1]
        with suppress(OSError):
            if not owner.isdigit() or Path("/proc", owner).exists() or folder.stat().st_uid != os.getuid():
                continue
            for process in _with_open_files_in(folder):
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            shutil.rmtree(folder, ignore_errors=True)


def _with_open_files_in(folder: Path) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):  # it ended meanwhile, or is another user's
                if any(file.readlink().is_relative_to(folder) for file in (entry / "fd").iterdir()):
                    yield int(entry.name)
