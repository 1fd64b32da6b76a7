"""How long tests wait for what happens in other processes, and ports that nobody takes meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress

import psutil

from replora.train.gang import free_address

__all__ = ["PATIENCE_S", "free_port", "running", "wait_for"]

#: Longest wait for anything, in seconds (choice: far beyond what a loaded machine takes, so that only what
#: hangs meets it; a test is given twice as long in all, see pyproject.toml).
PATIENCE_S = 600.0


def wait_for(fact: Callable[[], bool], what: str = "what is waited for") -> None:
    """Until something is so."""
    end = time.monotonic() + PATIENCE_S
    while not fact():
        assert time.monotonic() < end, f"{what} did not come within {PATIENCE_S:.0f} s"
        time.sleep(0.02)


def running(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those that have not ended; one that has, and whom nobody has asked for its status, has ended."""
    return [each for each in processes if each.is_running() and _status(each) != psutil.STATUS_ZOMBIE]


def _status(process: psutil.Process) -> str:
    with suppress(psutil.NoSuchProcess):
        return str(process.status())
    return str(psutil.STATUS_ZOMBIE)


def free_port() -> int:
    """A port of loopback for a server that starts later."""
    return int(free_address().rpartition(":")[2])
