"""Tune's actor manager, with slots of long-lived hosts in the place of actors."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import ray
from ray.air.execution._internal import TrackedActor
from ray.exceptions import RayError

from replora.errors import MachineError
from replora.train.events import Checkpointed, Event, Failed, Finished, Reported
from sweeps.gang import GangError
from sweeps.ray_backend.contract import Director, Task
from sweeps.ray_backend.hosts import RemoteHost
from sweeps.ray_backend.loop import Admit, News, Started, Withdraw

__all__ = ["STOP", "TASK", "SlotActorManager", "TrialFailedError"]

#: Key of a Tune trial's configuration that holds its `Task`, and of a Tune result that says to stop.
TASK = "task"
STOP = "stop"


class TrialFailedError(Exception):
    """What Tune is told when a trial failed; the director already knows."""


@dataclass
class _Slot:
    """One running Tune trial: where it runs, and Tune's callbacks of its outstanding `train` call."""

    tracked: TrackedActor
    task: Task
    host: RemoteHost
    step: int = 0
    on_result: Callable[[TrackedActor, dict[str, Any]], None] | None = None
    on_error: Callable[[TrackedActor, Exception], None] | None = None

    @property
    def key(self) -> tuple[str, int]:
        """Trial and attempt."""
        return self.task.fingerprint, self.task.attempt


class SlotActorManager:
    """What `ray.tune`'s controller asks of `RayActorManager`, answered with slots instead of processes.

    `add_actor` takes a slot when one is free; its `train` call is answered by the trial's next report.
    Nothing here decides: every batch of events goes to the director, which records it and names the trials
    that must stop; then Tune is told, and stops them.
    """

    def __init__(self, hosts: Sequence[RemoteHost], director: Director) -> None:
        self._hosts = list(hosts)
        self._director = director
        self._numbers = itertools.count()
        self._reserved = 0
        self._pending: dict[TrackedActor, Task] = {}
        self._live: dict[TrackedActor, _Slot] = {}
        self._running: dict[tuple[str, int], _Slot] = {}
        self._todo: deque[Callable[[], None]] = deque()
        #: Tune reads the Ray actor of a trial here to fill in metrics; a slot has none.
        self._live_actors_to_ray_actors_resources: Mapping[TrackedActor, tuple[None, None]] = _NoActors()

    @property
    def vacant(self) -> int:
        """Slots that no running, waiting or reserved trial will take; a host that comes up has none yet."""
        room = sum(self._room(host) for host in self._hosts if host.ready or not host.alive)
        return room - self.num_pending_actors - self._reserved

    @property
    def has_empty_host(self) -> bool:
        """Whether a host without trials is left for one that must be alone."""
        empty = sum(not self._on(host) for host in self._hosts if host.ready or not host.alive)
        return empty > self.num_pending_actors + self._reserved

    def reserve(self) -> None:
        """Keeps a slot for a trial that Tune has been given and will add."""
        self._reserved += 1

    # -- what Tune's controller calls -----------------------------------------------------------------

    @property
    def num_live_actors(self) -> int:
        """Trials that have a slot."""
        return len(self._live)

    @property
    def num_pending_actors(self) -> int:
        """Trials that wait for a slot."""
        return len(self._pending)

    @property
    def num_total_actors(self) -> int:
        """All trials that have a slot or wait for one."""
        return len(self._live) + len(self._pending)

    @property
    def num_actor_tasks(self) -> int:
        """Trials whose next report is awaited."""
        return sum(slot.on_result is not None for slot in self._live.values())

    def add_actor(
        self,
        cls: Any,
        kwargs: Mapping[str, Any],
        resource_request: Any,
        *,
        on_start: Callable[[TrackedActor], None],
        on_stop: Callable[[TrackedActor], None],
        on_error: Callable[[TrackedActor, Exception], None],
    ) -> TrackedActor:
        """Queues a trial for the next free slot; `on_start` is called from `next`."""
        del cls, resource_request  # a slot needs no class and takes no resources of its own
        tracked = TrackedActor(next(self._numbers), on_start=on_start, on_stop=on_stop, on_error=on_error)
        self._pending[tracked] = kwargs["config"][TASK]
        self._reserved -= 1
        return tracked

    def remove_actor(self, tracked_actor: TrackedActor, kill: bool = False, stop_future: Any = None) -> bool:
        """Frees a trial's slot at once and stops it on its host; `on_stop` follows from `next`."""
        del kill, stop_future  # the host withdraws between two steps; there is no process to end
        self._pending.pop(tracked_actor, None)
        slot = self._live.pop(tracked_actor, None)
        if slot is None:
            return False
        if self._running.pop(slot.key, None):  # None once the host said that the trial ended
            slot.host.command(Withdraw(slot.task.fingerprint))
        if tracked_actor._on_stop is not None:
            self._todo.append(partial(tracked_actor._on_stop, tracked_actor))
        return True

    def schedule_actor_task(
        self,
        tracked_actor: TrackedActor,
        method_name: str,
        args: tuple[Any, ...] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        on_result: Callable[[TrackedActor, Any], None] | None = None,
        on_error: Callable[[TrackedActor, Exception], None] | None = None,
        _return_future: bool = False,
    ) -> None:
        """`train` asks for the trial's next report; `stop` needs nothing, since `remove_actor` follows."""
        del args, kwargs, _return_future
        if method_name == "stop":
            return
        if method_name != "train":
            raise NotImplementedError(f"a slot answers train and stop, but Tune asked for {method_name}")
        slot = self._live[tracked_actor]
        slot.on_result, slot.on_error = on_result, on_error

    def clear_actor_task_futures(self, tracked_actor: TrackedActor) -> None:
        """Forgets that a report was asked for."""
        if slot := self._live.get(tracked_actor):
            slot.on_result = slot.on_error = None

    def is_actor_started(self, tracked_actor: TrackedActor) -> bool:
        """Whether the trial has a slot."""
        return tracked_actor in self._live

    def is_actor_failed(self, tracked_actor: TrackedActor) -> bool:
        """Never: a slot cannot fail, its trial can."""
        del tracked_actor
        return False

    def get_live_actors_resources(self) -> dict[str, float]:
        """Nothing: slots take no Ray resources, their hosts do."""
        return {}

    def next(self, timeout: float | None = None) -> bool:
        """Starts waiting trials and delivers what happened; waits up to `timeout` when nothing did."""
        progressed = self._start_pending()
        progressed = self._deliver() or progressed
        self._flush()
        if not progressed:
            self._receive(timeout)
            progressed = self._deliver()
            self._flush()
        return progressed

    def interrupt(self, timeout_s: float) -> None:
        """Checkpoints and stops every running trial, and records what hosts still have to tell.

        Args:
            timeout_s: Hosts that take longer are ended where they are; their trials go on from their
                last checkpoints.
        """
        hosts = {slot.host.name: slot.host for slot in self._running.values()}.values()
        stops = {host.ask_to_stop(timeout_s): host for host in hosts}
        stopped, _ = ray.wait(list(stops), num_returns=len(stops), timeout=timeout_s) if stops else ([], [])
        for stop in stopped:
            with suppress(RayError):  # a host that died on the way out has nothing to tell
                while ray.get(stop) and (news := stops[stop].receive()):
                    self._record(stops[stop], news)

    # -- slots ----------------------------------------------------------------------------------------

    def _start_pending(self) -> bool:
        started = False
        while self._pending and (host := self._host_for(next(iter(self._pending.values())))) is not None:
            tracked = next(iter(self._pending))
            self._start(tracked, self._pending.pop(tracked), host)
            started = True
        return started

    def _start(self, tracked: TrackedActor, task: Task, host: RemoteHost) -> None:
        slot = _Slot(tracked, task, host)
        self._live[tracked] = self._running[slot.key] = slot
        host.command(Admit(task))
        if tracked._on_start is not None:
            tracked._on_start(tracked)  # Tune marks the trial as running and asks for its first report

    def _host_for(self, task: Task) -> RemoteHost | None:
        """The host with the most room; where none has any, a dead one is started, for later."""
        free = [host for host in self._hosts if self._room(host) and not (task.alone and self._on(host))]
        ready = [host for host in free if host.ready]
        if not ready and (dead := [host for host in free if not host.alive]):
            dead[0].start()
        return max(ready, key=self._room, default=None)

    def _room(self, host: RemoteHost) -> int:
        """Trials that a host can take: by its slots, by what memory allows, and beside those it has."""
        taken, width = self._on(host), self._director.limits.width
        if any(task.alone for task in taken):
            return 0
        return max(0, min(host.slots, width or host.slots) - len(taken))

    def _on(self, host: RemoteHost) -> list[Task]:
        return [slot.task for slot in self._live.values() if slot.host is host]

    # -- events ---------------------------------------------------------------------------------------

    def _receive(self, timeout: float | None) -> None:
        self._end_where_no_host_comes()
        hosts = {answer: host for host in self._hosts for answer in host.awaited}
        if not hosts:  # all died and nothing wants a slot right now
            time.sleep(timeout or 0.0)
            return
        ready, _ = ray.wait(list(hosts), num_returns=1, timeout=timeout)
        if ready:  # others may have become ready with it: take all at once
            ready, _ = ray.wait(list(hosts), num_returns=len(hosts), timeout=0)
        for host in dict.fromkeys(hosts[answer] for answer in ready):
            self._take(host)

    def _end_where_no_host_comes(self) -> None:
        """Others' trials go on while a gang waits for its place; where all wait, nothing ever would.

        Raises:
            MachineError: With what is free.
        """
        refusals = [host.refusal for host in self._hosts if host.alive]
        if refusals and all(refusals):
            raise refusals[0]  # type: ignore[misc]

    def _take(self, host: RemoteHost) -> None:
        try:
            news = host.receive()
        except MachineError as error:  # the machine is not fit for the sweep: no trial could do better
            raise MachineError(str(getattr(error, "cause", error))) from None
        except RayError as error:
            failures = {each.trial: each for each in _failures(error)}
            news = self._lose(host, _cause(error), failures=failures)
        if any(isinstance(event, Failed) and event.kind == "out-of-memory" for _, event in news):
            ended = {event.trial for _, event in news if isinstance(event, Finished | Failed)}
            news += self._lose(host, "its memory was used up, and only a fresh process has all of it", ended)
        events, stops = self._record(host, news)
        told: dict[tuple[str, int], tuple[_Slot, Event]] = {}
        for slot, event in events:
            slot.step = max(slot.step, event.step)
            if event.trial in stops or not isinstance(event, Checkpointed):
                told[slot.key] = slot, event  # of several reports Tune gets the newest: it decides nothing
        for slot, event in told.values():
            self._todo.append(partial(self._tell, slot, event, event.trial in stops))

    def _lose(
        self,
        host: RemoteHost,
        cause: str,
        ended: Collection[str] = (),
        failures: Mapping[str, Failed] = MappingProxyType({}),
    ) -> News:
        """A host ends: each of its trials is lost but those that have ended or failed, and nothing else."""
        host.kill()
        running = [slot for slot in self._running.values() if slot.host is host]
        lost = [slot for slot in running if slot.task.fingerprint not in ended]
        reason = f"{host.name} ended with {len(lost)} trials: {cause}"
        news: News = []
        for slot in lost:
            trial = slot.task.fingerprint
            failed = failures.get(trial) or Failed(trial, slot.step, "lost", reason, len(lost) - 1)
            news.append((slot.task.attempt, failed))
        return news

    def _record(self, host: RemoteHost, news: News) -> tuple[list[tuple[_Slot, Event]], set[str]]:
        """One batch to the director, with two writes to disk; its events by slot, and who must stop."""
        events: list[tuple[_Slot, Event]] = []
        started: dict[str, str] = {}
        for attempt, event in news:
            slot = self._running.get((event.trial, attempt))
            if slot is None:
                continue  # stopped in the meantime
            if isinstance(event, Started):
                started[event.trial] = event.data
                continue
            events.append((slot, event))
            if isinstance(event, Finished | Failed):
                del self._running[event.trial, attempt]
        if started:
            self._director.started_all(host.name, started)
        if not events:
            return events, set()
        attempts = {slot.task.fingerprint: slot.task.attempt for slot, _ in events}
        return events, self._director.handle_all([event for _, event in events], attempts)

    def _deliver(self) -> bool:
        delivered = bool(self._todo)
        while self._todo:
            self._todo.popleft()()
        return delivered

    def _tell(self, slot: _Slot, event: Event, stop: bool) -> None:
        """Tells Tune of one event, where Tune has a word for it."""
        if slot.on_result is None or slot.on_error is None:
            return  # stopped in the meantime
        match event:
            case Failed():
                slot.on_error(slot.tracked, TrialFailedError(f"{event.kind}: {event.reason}"))
            case Reported() | Finished():
                done = {"done": True} if isinstance(event, Finished) else {STOP: stop}
                slot.on_result(slot.tracked, {**event.metrics, "training_iteration": event.step, **done})
            case Checkpointed():
                slot.on_result(slot.tracked, {"training_iteration": event.step, "done": True})

    def _flush(self) -> None:
        for host in self._hosts:
            host.flush()


class _NoActors(Mapping[TrackedActor, tuple[None, None]]):
    """Every trial's Ray actor is None."""

    def __getitem__(self, key: TrackedActor) -> tuple[None, None]:
        return (None, None)

    def __iter__(self) -> Any:
        return iter(())

    def __len__(self) -> int:
        return 0


def _failures(error: RayError) -> tuple[Failed, ...]:
    """What the rank of a gang that failed says of its trials."""
    cause = getattr(error, "cause", None)
    return cause.failures if isinstance(cause, GangError) else ()


def _cause(error: RayError) -> str:
    """One line on why a host ended: the exception of its loop, or what Ray says of its process."""
    cause = getattr(error, "cause", None)
    text = f"{type(cause).__name__}: {cause}" if cause is not None else str(error)
    return next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
