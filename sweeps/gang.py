"""A host of several ranks: the leader's host is told what to do, and every rank does the same on its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from replora.train.events import Event, Failed

__all__ = ["GangError", "LeadingHost", "follow"]


class GangError(Exception):
    """What failed on one rank: the others wait in the middle of a step, so only a fresh gang can go on.

    It comes home with the rank's own end, whichever rank it is, and keeps the failures for the ledger.

    Attributes:
        failures: Of the trials that failed by it; the others of the gang are lost with it.
    """

    def __init__(self, failures: Sequence[Failed]) -> None:
        super().__init__(tuple(failures))
        self.failures = tuple(failures)

    def __str__(self) -> str:
        return "; ".join(dict.fromkeys(each.reason for each in self.failures))


class _Host(Protocol):
    """What a gang needs of the host of each rank; `sweeps.host.Host` is one."""

    @property
    def busy(self) -> bool: ...

    def admit(self, task: Any) -> str | None: ...

    def withdraw(self, trial: str) -> None: ...

    def step(self) -> list[Event]: ...

    def checkpoint(self) -> list[Event]: ...


class LeadingHost:
    """Rank 0's host; each call is made on the followers' hosts too, in the same order.

    All ranks hold the same trials at the same steps, so only the calls travel, not their answers. What
    goes wrong in a step on one rank leaves it out of step with the others: the host raises a `GangError`, and
    the gang ends.
    """

    def __init__(self, host: _Host) -> None:
        self._host = host

    @property
    def busy(self) -> bool:
        """Whether `step` has anything to do or to tell."""
        return self._host.busy

    def admit(self, task: Any) -> str | None:
        """Gives a trial a slot on every rank."""
        self._tell("admit", task)
        return self._host.admit(task)

    def withdraw(self, trial: str) -> None:
        """Stops a trial early on every rank."""
        self._tell("withdraw", trial)
        self._host.withdraw(trial)

    def step(self) -> list[Event]:
        """One optimizer step of every running trial, each rank doing its share."""
        self._tell("step")
        return self._host.step()

    def checkpoint(self) -> list[Event]:
        """Writes the state of every running trial."""
        self._tell("checkpoint")
        return self._host.checkpoint()

    @staticmethod
    def _tell(call: str, *arguments: object) -> None:
        from replora.train import ranks  # torch, which the driver does without

        ranks.from_leader(lambda: (call, arguments))


def follow(host: _Host) -> None:
    """Does on this rank what the leader's host does; ends with this process, or by an error."""
    from replora.train import ranks

    while True:
        call, arguments = ranks.from_leader(_led)
        getattr(host, call)(*arguments)


def _led() -> tuple[str, tuple[object, ...]]:
    raise AssertionError("rank 0 leads")
