"""Which signals end a sweep between two steps."""

from __future__ import annotations

import os
import signal

import pytest

from sweeps.interruption import interruption, raise_for


def test_a_terminal_that_closes_is_noted_like_ctrl_c() -> None:
    with interruption() as signalled:
        os.kill(os.getpid(), signal.SIGHUP)
    assert signalled == [signal.SIGHUP]
    with pytest.raises(SystemExit, match="129"):
        raise_for(signalled)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_what_was_ignored_before_stays_ignored(number: signal.Signals) -> None:
    """Under nohup, and in the background of a script."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with interruption() as signalled:
            os.kill(os.getpid(), number)
        assert signalled == []
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)
