"""Memory, cores, folders and the clock of this machine."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from pathlib import Path

from cluster.doctor.finding import Finding, bad, doubtful, good

__all__ = ["check_clock", "check_cores", "check_folder", "check_memory", "check_shared_memory"]

GIB = 2**30
#: Under these, in GiB, a host of the digits job does not fit, or hardly (measured: 347 MB a process).
LEAST_MEMORY, LITTLE_MEMORY = 0.5, 2.0
#: Ray's object store of a local sweep has 80 MiB; a container's /dev/shm often has 64.
LEAST_SHARED = 0.2
#: Free space of a folder, in GiB (choice): a checkpoint must fit, and a sweep should.
LEAST_SPACE, LITTLE_SPACE = 0.1, 2.0
#: Difference between two clocks that confuses ledgers and certificates, in seconds (choice).
MOST_SKEW = 5.0


def check_memory(info: Path = Path("/proc/meminfo")) -> Finding:
    """Memory that new processes can have."""
    fields = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
    total, free = (int(fields[name].split()[0]) * 1024 / GIB for name in ("MemTotal", "MemAvailable"))
    text = f"{free:.1f} of {total:.1f} GiB are free"
    remedy = "End other programs, or run fewer hosts (resources.hosts)."
    if free < LEAST_MEMORY:
        return bad("memory", text, remedy)
    return doubtful("memory", text, remedy) if free < LITTLE_MEMORY else good("memory", text)


def check_cores() -> Finding:
    """Cores that this process may use, and the thread count that it would hand on."""
    cores, asked = len(os.sched_getaffinity(0)), os.environ.get("OMP_NUM_THREADS")
    text = f"{cores} cores; OMP_NUM_THREADS is {asked or 'not set'}"
    if asked is None or (asked.isdigit() and 1 <= int(asked) <= cores):
        return good("cores", text)
    return doubtful("cores", text, f"Unset OMP_NUM_THREADS or set it to 1 up to {cores}: more threads wait.")


def check_shared_memory(folder: Path = Path("/dev/shm")) -> Finding:
    """Room for Ray's object store."""
    if not folder.is_dir():
        return doubtful("shm", f"there is no {folder}", "Mount a tmpfs there; Ray falls back to the disk.")
    free = shutil.disk_usage(folder).free / GIB
    text = f"{free:.1f} GiB are free in {folder}"
    if free < LEAST_SHARED:
        return doubtful("shm", text, "Start the container with --shm-size=2g, or remount it larger.")
    return good("shm", text)


def check_folder(name: str, folder: Path) -> Finding:
    """A folder, or where it would be made, can be written and has space."""
    there = next((each for each in (folder, *folder.absolute().parents) if each.exists()), Path("/"))
    elsewhere = "Set REPLORA_CACHE to a folder that can." if name == "cache" else "Give another with --dir."
    try:
        with tempfile.NamedTemporaryFile(dir=there, prefix=".replora-") as file:
            file.write(b"x" * 4096)
            file.flush()
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        cure = f"Free some space. {elsewhere}" if full else elsewhere
        return bad(name, f"{folder} cannot be written: {error.strerror}", cure)
    free = shutil.disk_usage(there).free / GIB
    text = f"{folder} can be written, {free:.1f} GiB are free"
    remedy = f"Free some space. {elsewhere}"
    if free < LEAST_SPACE:
        return bad(name, text, remedy)
    return doubtful(name, text, remedy) if free < LITTLE_SPACE else good(name, text)


def check_clock(folder: Path) -> Finding:
    """This clock against the one that stamps files in a folder: a file server's, where it is shared."""
    there = next((each for each in (folder, *folder.absolute().parents) if each.exists()), Path("/"))
    try:
        with tempfile.NamedTemporaryFile(dir=there, prefix=".replora-") as file:
            skew = Path(file.name).stat().st_mtime - time.time()
    except OSError as error:
        return doubtful("clock", f"not compared: {error.strerror}", "Make the folder writable.")
    if abs(skew) > MOST_SKEW:
        text = f"{abs(skew):.0f} s {'behind' if skew > 0 else 'ahead of'} the clock of {there}"
        return doubtful("clock", text, "Run a time service (chrony, systemd-timesyncd) on every machine.")
    return good("clock", f"agrees with the files of {there}")
