"""The in-process backend: one host in this process, driven by the same director as the hosts of Ray."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from replora.errors import ConfigError
from replora.train.events import Event
from sweeps.director import Director, TrialTask
from sweeps.interruption import interruption, raise_for
from sweeps.resources import Layout

__all__ = ["Backend", "Trainer", "drive", "run"]

IDLE_S = 0.2  # between calls of on_idle (choice: what a person notices)


class Trainer(Protocol):
    """What a backend asks of a host; `sweeps.host.Host` is one."""

    @property
    def free(self) -> int:
        """Slots without a trial."""
        ...

    @property
    def trials(self) -> tuple[str, ...]:
        """Trials that are training."""
        ...

    def admit(self, task: TrialTask) -> str | None:
        """Gives a trial a slot; the hash of the data that it reads, or None if it did not start."""
        ...

    def withdraw(self, trial: str) -> None:
        """Stops a trial early."""
        ...

    def step(self) -> list[Event]:
        """One optimizer step of every running trial, and everything that happened since the last call."""
        ...

    def checkpoint(self) -> list[Event]:
        """Writes the state of every running trial."""
        ...


class Backend(Protocol):
    """Runs the trials of a sweep to their end: `run` of this module, and of `sweeps.ray_backend`."""

    def __call__(
        self,
        director: Director,
        folder: Path,
        layout: Layout,
        *,
        ranks: int = 1,
        address: str | None = None,
        on_idle: Callable[[], None] | None = None,
    ) -> None:
        """Runs a sweep to its end; returns when `director.done`.

        Args:
            director: Decides which trials run and which stop, and records everything.
            folder: Of the sweep; on a cluster, one that every node sees.
            layout: Long-lived hosts that hold a frozen base each, and the slots and threads of one.
            ranks: Processes of one host; more than one are a gang.
            address: Of a running Ray cluster (`auto` finds the local one); null means this machine.
            on_idle: Called several times a second, for a live display.

        Raises:
            KeyboardInterrupt: After SIGINT, when every running trial has written a checkpoint.
            SystemExit: After SIGTERM, likewise.
        """
        ...


def run(
    director: Director,
    folder: Path,
    layout: Layout,
    *,
    ranks: int = 1,
    address: str | None = None,
    on_idle: Callable[[], None] | None = None,
) -> None:
    """A `Backend` without Ray: all slots of the layout are in the one host of this process.

    Raises:
        ConfigError: If a host has several ranks: this process is the only one.
    """
    del folder, address
    if ranks > 1:
        raise ConfigError(
            f"run.engine.ranks must be 1 with backend: in-process, but got {ranks}. Set backend: ray."
        )
    host = _host(layout.hosts * layout.slots, layout.hosts * layout.threads)
    drive(director, host, on_idle or (lambda: None))


def drive(director: Director, trainer: Trainer, beat: Callable[[], None]) -> None:
    """Steps one host until the director is done or a signal arrives."""
    last = time.monotonic()
    alone: set[str] = set()
    with interruption() as signalled:
        while not (director.done or signalled):
            _fill(director, trainer, alone)
            for trial in director.handle_all(trainer.step()):
                trainer.withdraw(trial)
            if time.monotonic() - last >= IDLE_S:
                beat()
                last = time.monotonic()
        if signalled:
            director.handle_all(trainer.checkpoint())
    raise_for(signalled)


def _fill(director: Director, trainer: Trainer, alone: set[str]) -> None:
    """Starts trials while there is room; `alone` collects those that must have no neighbour."""
    while trainer.free and not alone.intersection(trainer.trials):
        full = len(trainer.trials) >= (director.limits.width or math.inf)
        if full or (task := director.ask(empty=not trainer.trials)) is None:
            return
        if task.alone:
            alone.add(task.fingerprint)
        data = trainer.admit(task)
        if data is not None:
            director.started(task.fingerprint, "in-process", data)


def _host(slots: int, threads: int) -> Trainer:
    import torch

    from sweeps.host import Host

    return Host(slots, threads, "cuda" if torch.cuda.is_available() else "cpu")
