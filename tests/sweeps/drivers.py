"""Sweeps that `replora` drives in a process of its own: halted at a line of their ledgers, killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from sweeps.ledger import LEDGER_NAME
from tests.waiting import wait_for

__all__ = ["halted_at", "killed_at", "replora", "until"]

#: The program, which stops itself (as Ctrl-Z does) when it has recorded so many lines of an event.
HALTS = """
import os, signal
from replora.cli import main
from sweeps.ledger import Ledger
left, append_all = {count}, Ledger.append_all
def append(self, entries):
    global left
    lines = append_all(self, entries)
    before, left = left, left - sum(line["event"] == "{event}" for line in lines)
    if left <= 0 < before:
        os.kill(os.getpid(), signal.SIGSTOP)
    return lines
Ledger.append_all = append
raise SystemExit(main())
"""


def replora(*words: str) -> list[str]:
    """The command line."""
    return [sys.executable, "-m", "replora", *words]


def until(folder: Path, event: str, count: int, driver: subprocess.Popen[Any]) -> None:
    """Until the ledger has so many lines of an event; the sweep must not end before."""

    def there() -> bool:
        assert driver.poll() is None, f"the sweep ended too early: {driver.stderr and driver.stderr.read()}"
        return _count(folder, event) >= count

    wait_for(there, f"{count} lines of {event}")


def halted_at(event: str, count: int, words: Sequence[str]) -> subprocess.Popen[str]:
    """`replora` with these words, once it has halted at the line: however slow this process is, it waits."""
    command = [sys.executable, "-c", HALTS.format(event=event, count=count), *words]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def stopped() -> bool:
        assert driver.poll() is None, f"it ended before {count} lines of {event}: {driver.communicate()[1]}"
        return bool(psutil.Process(driver.pid).status() == psutil.STATUS_STOPPED)

    try:
        wait_for(stopped, f"{count} lines of {event}")
    except BaseException:
        _kill(driver)
        raise
    return driver


def killed_at(event: str, count: int, words: Sequence[str]) -> list[psutil.Process]:
    """Runs `replora` with these words and kills it at the line; its children, which live on or do not."""
    driver = halted_at(event, count, words)
    try:
        return list(psutil.Process(driver.pid).children(recursive=True))
    finally:
        _kill(driver)


def _kill(driver: subprocess.Popen[str]) -> None:
    driver.send_signal(signal.SIGKILL)
    driver.communicate()


def _count(folder: Path, event: str) -> int:
    path = folder / LEDGER_NAME
    return path.read_bytes().count(f'"event":"{event}"'.encode()) if path.exists() else 0
