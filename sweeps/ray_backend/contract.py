"""What the Ray backend asks of a director and of a host; both are free of Ray."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from replora.train.events import Event
from sweeps.host import Assignment
from sweeps.retries import Limits

__all__ = ["Director", "HostFactory", "HostPlan", "Task", "Trainer"]


@dataclass(frozen=True)
class HostPlan:
    """The hosts of a sweep.

    Attributes:
        hosts: How many.
        slots: Trials that train at once on one host.
        threads: CPU threads of one host.
        folder: Of the sweep; every host must see it.
        memory_gib: What a process on CPUs may allocate; null sets no limit.
        ranks: Processes of one host, each a bundle of one placement group.
        prompt: Whether the driver should hear of reports at once.
    """

    hosts: int
    slots: int
    threads: int
    folder: Path
    memory_gib: float | None = None
    ranks: int = 1
    prompt: bool = False


class Task(Assignment, Protocol):
    """One trial to run; `sweeps.director.TrialTask` is one."""

    @property
    def attempt(self) -> int:
        """How often it was started, this time included."""
        ...

    @property
    def alone(self) -> bool:
        """Whether no other trial may be on its host."""
        ...


class Director(Protocol):
    """Holds every decision and every record of a sweep; `sweeps.director.Director` is one."""

    @property
    def done(self) -> bool:
        """Nothing runs and nothing is left to ask."""
        ...

    @property
    def judges(self) -> bool:
        """Whether a report may stop its trial."""
        ...

    @property
    def limits(self) -> Limits:
        """What memory allows; no host may train more trials at once than its `width`."""
        ...

    def ask(self, *, empty: bool = True) -> Task | None:
        """The next trial to run, or None: nothing to start now. `empty`: there is a host without trials."""
        ...

    def started_all(self, host: str, trials: Mapping[str, str]) -> None:
        """Records that trials, each with the hash of its data, got slots on a host."""
        ...

    def handle_all(self, events: Sequence[Event], attempts: Mapping[str, int] | None = None) -> set[str]:
        """Records events of these attempts; the trials that must stop."""
        ...


class Trainer(Protocol):
    """What runs inside a host process; `sweeps.host.Host` is one."""

    @property
    def busy(self) -> bool:
        """Whether `step` has anything to do."""
        ...

    def admit(self, task: Task) -> str | None:
        """Gives a trial a slot; the hash of its data, or None when it could not start."""
        ...

    def withdraw(self, trial: str) -> None:
        """Stops a trial early."""
        ...

    def step(self) -> list[Event]:
        """One optimizer step of every running trial."""
        ...

    def checkpoint(self) -> list[Event]:
        """Writes the state of every running trial."""
        ...


#: Builds the trainer of one host from its slots, threads and device; runs in the host's process.
HostFactory = Callable[[int, int, str], Trainer]
