"""A host as a Ray actor, and the driver's handle on it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from replora.errors import MachineError
from replora.train.gang import free_address
from sweeps.gang import GangError
from sweeps.ray_backend.contract import HostFactory, HostPlan, Trainer
from sweeps.ray_backend.gangs import Bundles, FollowerActor, make_trainer
from sweeps.ray_backend.loop import Command, HostLoop, News
from sweeps.ray_backend.session import Share

__all__ = ["HostActor", "RemoteHost"]

#: Longest wait for the rank whose end made another one fail, in seconds (choice: Ray tells of a dead
#: process within one).
_EXPLAIN_S = 5.0


class HostActor:
    """Runs in the host's process. Its methods only talk to the loop, so none waits for a step."""

    def __init__(self, factory: HostFactory, plan: HostPlan, device: str) -> None:
        os.environ["OMP_NUM_THREADS"] = str(plan.threads)  # OpenMP reads it when torch is first imported
        self._address = free_address(ray.util.get_node_ip_address()) if plan.ranks > 1 else ""
        self._loop = HostLoop(lambda: _make_leader(factory, plan, device, self._address), prompt=plan.prompt)

    def address(self) -> str:
        """Where the ranks of this host meet."""
        return self._address

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
        self._follower_class: Any = ray.remote(num_cpus=share.cpus, num_gpus=share.gpus, max_restarts=0)(
            FollowerActor
        )
        self._arguments = (factory, plan, share.device)
        self._ranks, self._share = plan.ranks, share
        self._bundles: Bundles | None = None
        self._actor: Any = None
        self._starts = 0
        self._up: Any = None
        #: Each is ready when a rank other than 0 has ended: its actor by its answer, which never comes.
        self._followers: dict[Any, Any] = {}
        self._unsent: list[Command] = []

    @property
    def alive(self) -> bool:
        """Whether it was started and nothing is known of its death."""
        return self._actor is not None

    @property
    def ready(self) -> bool:
        """Whether trials should be given to it now.

        The first processes of a sweep are sure to come, and take trials before they are up. One that was
        started again may wait for a machine that has gone, while other hosts have room; so may the ranks of
        a gang at any time.
        """
        if self._bundles is not None and not self._bundles.placed:
            return False
        if self.alive and self._up is not None and ray.wait([self._up], timeout=0)[0]:
            self._up = None
        return self.alive and (self._starts == 1 or self._up is None)

    @property
    def refusal(self) -> MachineError | None:
        """Why it will not come, where its ranks have waited for a place for too long."""
        return self._bundles.refusal() if self._bundles is not None and self._bundles.late else None

    def start(self) -> None:
        """Starts a fresh process; what it imports and loads costs the driver no time."""
        self._unsent = []
        self._starts += 1
        if self._ranks == 1:
            self._actor = self._actor_class.remote(*self._arguments)
        else:
            self._start_ranks()
        self._up = self._actor.__ray_ready__.remote()
        self._open_poll()

    def _start_ranks(self) -> None:
        self._bundles = Bundles(self._ranks, self._share)
        self._actor = self._actor_class.options(**self._bundles.options(0)).remote(*self._arguments)
        address = self._actor.address.options(concurrency_group="submit").remote()
        for rank in range(1, self._ranks):
            follower = self._follower_class.options(**self._bundles.options(rank)).remote()
            self._followers[follower.follow.remote(*self._arguments, rank, address)] = follower

    @property
    def awaited(self) -> list[Any]:
        """What is ready when there is news of this host, good or bad."""
        return [] if self.poll is None else [self.poll, *self._followers]

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
            RayError: If a process of the host died or its loop ended.
        """
        assert self.poll is not None
        awaited = self.awaited
        ready, _ = ray.wait(awaited, num_returns=len(awaited), timeout=0)
        try:
            if self.poll not in ready:  # what the leader has to tell comes first
                ray.get(ready)  # raises, because following ends by errors only
            news: News = ray.get(self.poll)
        except RayError as error:
            raise self._reason(error) from None
        self._open_poll()
        return news

    def _reason(self, error: RayError) -> RayError:
        """Why a gang ended, where a rank's first word may only be that another one is gone."""
        heard = [error]
        waiting = self.awaited if self._followers else []
        while waiting and not any(_explains(each) for each in heard):
            ready, waiting = ray.wait(waiting, timeout=_EXPLAIN_S)
            if not ready:
                break
            heard += _errors(ready)
        return next((each for each in heard if _explains(each)), error)

    def kill(self) -> None:
        """Ends the processes at once."""
        for actor in [*([] if self._actor is None else [self._actor]), *self._followers.values()]:
            ray.kill(actor, no_restart=True)
        if self._bundles is not None:
            self._bundles.release()
        self._bundles, self._followers = None, {}
        self._actor, self.poll, self._up, self._unsent = None, None, None, []

    def ask_to_stop(self, timeout_s: float) -> Any:
        """A reference that is ready when the loop has ended."""
        return self._actor.stop.options(concurrency_group="submit").remote(timeout_s)

    def _open_poll(self) -> None:
        self.poll = self._actor.poll.options(concurrency_group="poll").remote()


def _explains(error: RayError) -> bool:
    """Whether an error is a reason by itself: a process that died, or what a rank says of its own failure."""
    if not isinstance(error, RayTaskError):
        return True
    return isinstance(error.cause, GangError | MachineError)


def _errors(answers: Iterable[Any]) -> list[RayError]:
    """What answers that are ready raise."""
    found: list[RayError] = []
    for answer in answers:
        try:
            ray.get(answer)
        except RayError as error:
            found.append(error)
    return found


def _make_leader(factory: HostFactory, plan: HostPlan, device: str, address: str) -> Trainer:
    """The trainer of a host's first process, which leads the others where there are any."""
    if plan.ranks == 1:
        return make_trainer(factory, plan, device)
    from replora.train import ranks
    from sweeps.gang import LeadingHost

    ranks.join(0, plan.ranks, address)
    return LeadingHost(make_trainer(factory, plan, device))
