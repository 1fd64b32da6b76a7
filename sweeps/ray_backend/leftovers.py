"""A driver's own temporary folder, and what a driver that was killed with SIGKILL leaves of its private Ray.

Ray's own processes end with their driver, but its agents may outlive it (seen with Ray 2.60), and so does
the temporary folder. The next driver ends the ones and removes the other. A driver holds a lock on its
folder, which the kernel takes back when it dies: whoever gets the lock may remove the folder, alone.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["PrivateFolder", "remove_leftovers"]

_PREFIX = "replora-ray-"


class PrivateFolder:
    """A new temporary folder for Ray's files and Tune's, locked until `remove`.

    Attributes:
        path: The folder.
    """

    def __init__(self, parent: Path) -> None:
        made = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}", dir=parent))
        self._lock = os.open(made, os.O_RDONLY)
        fcntl.flock(self._lock, fcntl.LOCK_SH)
        # Only now may other drivers see it.
        self.path = made.rename(parent / made.name.removeprefix("."))

    def remove(self) -> None:
        """Removes the folder with all it holds."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def remove_leftovers(parent: Path) -> None:
    """Ends the processes and removes the folders of this user's drivers that are no more."""
    for folder in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError), _locked(folder):  # a driver has it, or it is another user's
            for process in _writing_in(folder):
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds the folder's lock.

    Raises:
        OSError: If another process holds it, or the folder is another user's.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        if os.fstat(handle).st_uid != os.getuid():
            raise PermissionError(folder)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _writing_in(folder: Path) -> Iterator[int]:
    """Processes with a file in the folder open for writing, as Ray's logs are; readers are let be."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):  # it ended meanwhile, or is another user's
                files = [file for file in (entry / "fd").iterdir() if file.readlink().is_relative_to(folder)]
                if any(_is_written(entry / "fdinfo" / file.name) for file in files):
                    yield int(entry.name)


def _is_written(information: Path) -> bool:
    """Whether an open file's access mode, which `proc(5)` gives in octal flags, allows writing."""
    flags = next(line for line in information.read_text().splitlines() if line.startswith("flags:"))
    return int(flags.split()[1], 8) & os.O_ACCMODE != os.O_RDONLY
