"""Sweeps that `replora` drives in a process of its own: started, watched by their ledgers, killed."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from sweeps.ledger import LEDGER_NAME

__all__ = ["PATIENCE_S", "killed_when", "replora", "wait_for"]

#: Longest wait for an event, in seconds (choice: a loaded machine takes tens of seconds to start).
PATIENCE_S = 180.0


def replora(*words: str) -> list[str]:
    """The command line."""
    return [sys.executable, "-m", "replora", *words]


def wait_for(folder: Path, event: str, count: int, driver: subprocess.Popen[Any]) -> None:
    """Until the ledger has so many lines of an event; the sweep must not end before."""
    deadline = time.monotonic() + PATIENCE_S
    while _count(folder, event) < count:
        assert driver.poll() is None, f"the sweep ended too early: {driver.stderr and driver.stderr.read()}"
        assert time.monotonic() < deadline, f"no {count} lines of {event} within {PATIENCE_S:.0f} s"
        time.sleep(0.005)


def killed_when(command: list[str], folder: Path, event: str, more: int) -> list[psutil.Process]:
    """Runs a command and kills it once the ledger has so many more lines of an event; its children."""
    before = _count(folder, event)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        wait_for(folder, event, before + more, process)
        children: list[psutil.Process] = psutil.Process(process.pid).children(recursive=True)
        return children
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def _count(folder: Path, event: str) -> int:
    path = folder / LEDGER_NAME
    return path.read_bytes().count(f'"event":"{event}"'.encode()) if path.exists() else 0
