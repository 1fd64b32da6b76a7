"""The ranks of a run on this machine: started together, watched, and ended together.

This process only watches: when a rank dies, the others would wait for it, so they are ended, and the run
fails with what the first one said. A rank whose watcher is gone ends itself.
"""

from __future__ import annotations

import multiprocessing
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from replora.config import RunConfig
from replora.errors import MachineError, ReploraError, RunFailedError
from replora.train.events import Event

__all__ = ["free_address", "run_ranks"]

Body = Callable[[RunConfig, Path, bool, Callable[[Event], None]], object]

_TERMINATE_S = 5.0  # choice: then a rank is killed
#: Rank 0 listens seconds after its port was chosen. Meanwhile the kernel gives ports to whoever asks for any,
#: from 32768 on (known: Linux's usual range), and Ray takes 10002 to 19999 for its workers.
_PORTS = range(20_000, 32_768)


def run_ranks(
    body: Body, config: RunConfig, folder: Path, test: bool, on_event: Callable[[Event], None]
) -> None:
    """Trains a run in `engine.ranks` processes; returns when all have ended well.

    Args:
        body: What every rank does with the rest; a function of a module.
        config: The run.
        folder: Its own.
        test: Whether the test split is read.
        on_event: Called with each event of rank 0.

    Raises:
        ReploraError: What the first failing rank raised.
        RunFailedError: If a rank died without a word.
    """
    context, address = multiprocessing.get_context("spawn"), free_address()
    pipes: dict[Connection, int] = {}
    processes: list[BaseProcess] = []
    try:
        for rank in range(config.engine.ranks):
            here, there = context.Pipe()
            process: BaseProcess = context.Process(
                target=_rank, args=(rank, address, body, (config, folder, test), there), daemon=True
            )
            process.start()
            there.close()
            processes.append(process)
            pipes[here] = rank
        _watch(pipes, processes, on_event)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(_TERMINATE_S)
            process.kill()
            process.join()
        for pipe in pipes:
            pipe.close()


def free_address(host: str = "127.0.0.1") -> str:
    """A port of this machine's address `host` that nobody has and few will ask for, as `host:port`.

    Raises:
        MachineError: If no port of the address can be had.
    """
    for _ in range(100):  # choice: so many taken ones in a row are no chance
        with socket.socket() as probe, suppress(OSError):
            probe.bind((host, secrets.choice(_PORTS)))
            return f"{host}:{probe.getsockname()[1]}"
    raise MachineError(f"no free port on {host}: it is no address of this machine, or its ports are in use")


def _watch(
    pipes: dict[Connection, int], processes: list[BaseProcess], on_event: Callable[[Event], None]
) -> None:
    """Passes events on until every rank has ended; raises as soon as one ends badly."""
    left = dict(pipes)
    while left:
        for pipe in wait(list(left)):
            assert isinstance(pipe, Connection)
            try:
                said = pipe.recv()
            except EOFError:
                rank = left.pop(pipe)
                processes[rank].join()
                said = _RankEnded(rank) if processes[rank].exitcode else None
            if isinstance(said, Exception):
                raise _cause(said, processes)
            if said is not None:
                on_event(said)


class _RankEnded(Exception):  # noqa: N818 - said by nobody, found by the watcher
    """A rank ended without a word."""


def _cause(said: Exception, processes: list[BaseProcess]) -> ReploraError:
    """Why a run failed: a rank that was killed, else what the first failing rank said.

    The others notice a dead rank by the connection that it closes, and may speak first.
    """
    deadline = time.monotonic() + _TERMINATE_S
    while time.monotonic() < deadline:
        ended = {rank: process.exitcode for rank, process in enumerate(processes) if process.exitcode}
        killed = {rank: status for rank, status in ended.items() if status < 0}
        if killed or len(ended) == len(processes):
            break
        if isinstance(said, ReploraError) and not isinstance(said, RunFailedError):
            return said
        time.sleep(0.05)
    for rank, status in (killed or ended).items():
        if status < 0 or isinstance(said, _RankEnded):
            how = f"signal {-status}" if status < 0 else f"exit status {status}"
            return RunFailedError(
                f"rank {rank} of {len(processes)} ended with {how}, and the others were ended. "
                "Train again: the run goes on from its last checkpoint."
            )
    return said if isinstance(said, ReploraError) else RunFailedError(str(said))


def _rank(rank: int, address: str, body: Body, run: tuple[RunConfig, Path, bool], pipe: Connection) -> None:
    """The body of one rank's process."""
    config, folder, test = run
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else [str(index) for index in range(config.engine.ranks)]
    os.environ["CUDA_VISIBLE_DEVICES"] = devices[rank % len(devices)]
    threading.Thread(target=_end_with_watcher, args=(pipe,), daemon=True).start()
    from replora.train import ranks  # torch

    status = 0
    try:
        ranks.join(rank, config.engine.ranks, address)
        body(config, folder, test, pipe.send if rank == 0 else lambda event: None)
    except Exception as error:  # noqa: BLE001 - said to the watcher, which raises it
        told = (
            error if isinstance(error, ReploraError) else RunFailedError(f"{type(error).__name__}: {error}")
        )
        with suppress(OSError):
            pipe.send(told)
        status = told.exit_status
    sys.stdout.flush()
    sys.stderr.flush()
    # All is said and written. A regular end may abort in the destructors of the communication's threads
    # ("terminate called without an active exception"), which would read as a rank that was killed.
    os._exit(status)


def _end_with_watcher(pipe: Connection) -> None:
    """Ends this process when the watcher's end of the pipe closes: nobody waits for the run any more."""
    with suppress(EOFError, OSError):
        pipe.recv()
    os._exit(1)
