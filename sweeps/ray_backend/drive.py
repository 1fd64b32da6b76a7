"""Runs a sweep on Ray: starts the hosts, then lets Tune's controller step until the director is done."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ray.exceptions import RayError

from replora.errors import MachineError
from sweeps.interruption import interruption, raise_for
from sweeps.ray_backend.contract import Director, HostFactory, HostPlan, Trainer
from sweeps.ray_backend.hosts import RemoteHost
from sweeps.ray_backend.session import Session

__all__ = ["drive"]

#: Seconds between calls of `on_idle` (choice: a live table reads well at 5 per second).
IDLE_EVERY_S = 0.2
#: Seconds that an interrupted sweep grants its hosts for a last checkpoint (choice: a person waits).
STOP_TIMEOUT_S = 5.0


def drive(
    director: Director,
    session: Session,
    plan: HostPlan,
    on_idle: Callable[[], None] | None = None,
    factory: HostFactory | None = None,
) -> None:
    """Runs every trial that the director asks for; returns when it is done.

    Args:
        director: Decides and records.
        session: An open connection to Ray.
        plan: Of the hosts.
        on_idle: Called about five times a second.
        factory: Builds the trainer of a host; null means `sweeps.host.Host`.

    Raises:
        MachineError: If the connection to Ray is lost, or a host says that its machine is not fit.
        KeyboardInterrupt: After SIGINT, when the running trials have written checkpoints.
        SystemExit: After SIGTERM, likewise.
    """
    share = session.share(plan.threads, plan.ranks)
    hosts = [RemoteHost(index, plan, share, factory or _make_host) for index in range(plan.hosts)]
    try:
        for host in hosts:
            host.start()
        # Tune is imported while the hosts import torch.
        from sweeps.ray_backend.controller import make_controller
        from sweeps.ray_backend.slots import SlotActorManager

        slots = SlotActorManager(hosts, director)
        controller = make_controller(director, slots, session.scratch / "tune")
        with interruption() as signalled:
            _loop(controller, signalled, on_idle or (lambda: None))
            if signalled:
                slots.interrupt(STOP_TIMEOUT_S)
    except RayError as error:
        raise MachineError(f"the connection to Ray was lost: {error}. Resume the sweep.") from error
    finally:
        for host in hosts:
            host.kill()
    raise_for(signalled)


def _loop(tune: Any, signalled: list[int], on_idle: Callable[[], None]) -> None:
    last_idle = 0.0
    while not (tune.is_finished() or signalled):
        tune.step()
        if time.monotonic() - last_idle >= IDLE_EVERY_S:
            on_idle()
            last_idle = time.monotonic()


def _make_host(slots: int, threads: int, device: str) -> Trainer:
    from sweeps.host import Host

    return Host(slots, threads, device)
