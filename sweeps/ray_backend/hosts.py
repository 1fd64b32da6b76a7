"""A host as a Ray actor, and the driver's handle on it."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Any

import ray

from replora.errors import MachineError
from replora.train.process import limit_memory
from sweeps.ray_backend.contract import HostFactory, HostPlan, Trainer
from sweeps.ray_backend.loop import Command, HostLoop, News
from sweeps.ray_backend.session import Share

__all__ = ["HostActor", "RemoteHost"]


class HostActor:
    """Runs in the host's process. Its methods only talk to the loop, so none waits for a step."""

    def __init__(self, factory: HostFactory, plan: HostPlan, device: str) -> None:
        os.environ["OMP_NUM_THREADS"] = str(plan.threads)  # OpenMP reads it when torch is first imported
        self._loop = HostLoop(lambda: _make_trainer(factory, plan, device))

    def submit(self, commands: Sequence[Command]) -> None:
        """Hands commands to the loop."""
        self._loop.submit(commands)

    def poll(self) -> News:
        """Waits for the next batch of news."""
        return self._loop.poll()

    def stop(self, timeout_s: float) -> bool:
        """Ends the loop; whether it ended in time."""
        return self._loop.stop(timeout_s)


class RemoteHost:
    """The driver's handle on one host: its slots, the commands it has not sent yet, and one open poll."""

    def __init__(self, index: int, plan: HostPlan, share: Share, factory: HostFactory) -> None:
        self.name = f"host-{index}"
        self.slots = plan.slots
        self.poll: Any = None
        make_class: Any = ray.remote(
            num_cpus=share.cpus,
            num_gpus=share.gpus,
            max_restarts=0,  # the driver restarts hosts, because it must hear of every death
            # One thread each: commands stay in order, and neither waits for an open poll.
            concurrency_groups={"poll": 1, "submit": 1},  # type: ignore[call-overload]
        )
        self._actor_class = make_class(HostActor)
        self._arguments = (factory, plan, share.device)
        self._actor: Any = None
        self._unsent: list[Command] = []

    @property
    def alive(self) -> bool:
        """Whether it was started and nothing is known of its death."""
        return self._actor is not None

    def start(self) -> None:
        """Starts a fresh process; what it imports and loads costs the driver no time."""
        self._unsent = []
        self._actor = self._actor_class.remote(*self._arguments)
        self._open_poll()

    def command(self, command: Command) -> None:
        """Queues a command; `flush` sends all that are queued in one call."""
        if self.alive:
            self._unsent.append(command)

    def flush(self) -> None:
        """Sends queued commands."""
        if self._unsent:
            commands, self._unsent = self._unsent, []
            self._actor.submit.options(concurrency_group="submit").remote(commands)

    def receive(self) -> News:
        """What a poll that is ready brought, and the next poll opened.

        Raises:
            RayError: If the host's process died or its loop ended.
        """
        assert self.poll is not None
        news: News = ray.get(self.poll)
        self._open_poll()
        return news

    def kill(self) -> None:
        """Ends the process at once."""
        if self._actor is not None:
            ray.kill(self._actor, no_restart=True)
        self._actor, self.poll, self._unsent = None, None, []

    def ask_to_stop(self, timeout_s: float) -> Any:
        """A reference that is ready when the loop has ended."""
        return self._actor.stop.options(concurrency_group="submit").remote(timeout_s)

    def _open_poll(self) -> None:
        self.poll = self._actor.poll.options(concurrency_group="poll").remote()


def _make_trainer(factory: HostFactory, plan: HostPlan, device: str) -> Trainer:
    if not plan.folder.is_dir():
        raise MachineError(
            f"the sweep's folder {plan.folder} does not exist on {socket.gethostname()}. Put the sweep on a "
            f"file system that every node of the cluster mounts at the same path."
        )
    if plan.memory_gib is not None and device == "cpu":
        limit_memory(plan.memory_gib)
    return factory(plan.slots, plan.threads, device)
