"""What a killed driver left is removed, and nobody else is hurt by it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sweeps.ray_backend.leftovers import PrivateFolder, remove_leftovers
from tests.waiting import PATIENCE_S

DRIVES = """
from pathlib import Path
from sweeps.ray_backend.leftovers import PrivateFolder
folder = PrivateFolder(Path()).path
(folder / "session").mkdir()
(folder / "session/log").touch()
print(folder.name, flush=True)
input()
"""
HOLDS = """
import os, sys
handle = os.open(sys.argv[1], int(sys.argv[2]))
print("holds", flush=True)
input()
"""


@contextmanager
def running(code: str, folder: Path, *words: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A process, and its first line."""
    command = [sys.executable, "-c", code, *words]
    with subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().decode().strip()
        finally:
            process.kill()


def test_of_a_dead_drivers_folder_only_who_writes_there_is_ended(tmp_path: Path) -> None:
    with running(DRIVES, tmp_path) as (driver, name):
        log, folder = f"{name}/session/log", f"{name}/session"
        with (
            running(HOLDS, tmp_path, log, str(os.O_WRONLY)) as (writes, _),
            running(HOLDS, tmp_path, log, str(os.O_RDONLY)) as (reads, _),
            running(HOLDS, tmp_path, folder, str(os.O_RDONLY)) as (removes, _),  # as `shutil.rmtree` does
        ):
            remove_leftovers(tmp_path)
            assert (tmp_path / log).exists(), "its driver lives"
            driver.kill()
            driver.wait()
            remove_leftovers(tmp_path)
            assert writes.wait(PATIENCE_S) < 0
            assert (reads.poll(), removes.poll()) == (None, None)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_its_drivers_until_it_is_removed(tmp_path: Path) -> None:
    folder = PrivateFolder(tmp_path)
    (folder.path / "log").touch()
    remove_leftovers(tmp_path)
    assert (folder.path / "log").exists()
    folder.remove()
    assert list(tmp_path.iterdir()) == []
