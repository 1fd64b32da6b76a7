"""Ends a sweep between two steps instead of in the middle of one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["interruption", "raise_for"]


@contextmanager
def interruption() -> Iterator[list[int]]:
    """Collects the first SIGINT, SIGTERM or SIGHUP in the list that it gives; a second one acts as before.

    What the process was started to ignore stays ignored: SIGHUP under nohup, SIGINT in a script's background.
    """
    signalled: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # Python delivers signals there only
        yield signalled
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    before = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        signalled.append(number)
        restore()

    for number in before:
        signal.signal(number, note)
    try:
        yield signalled
    finally:
        restore()


def raise_for(signalled: list[int]) -> None:
    """Raises what the collected signal asks for: KeyboardInterrupt for SIGINT, else SystemExit."""
    if signalled:
        raise KeyboardInterrupt if signalled[0] == signal.SIGINT else SystemExit(128 + signalled[0])
