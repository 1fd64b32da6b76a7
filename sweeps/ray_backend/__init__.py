"""The Ray backend: Ray Tune runs the trials of a sweep as slots of a few long-lived hosts.

This package is the only place that imports ray, and it does so only when `run` is called.
`docs/decisions/0002-tune-trials-are-slots.md` says why a Tune trial is a slot and not a process.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sweeps.ray_backend.contract import Director
    from sweeps.resources import Layout

__all__ = ["run"]

#: Share of a machine's memory for hosts; a host that wants more fails alone, before the kernel ends
#: processes (choice: the rest is for the driver, Ray and the system).
_FOR_HOSTS = 0.85


def run(
    director: Director,
    folder: Path,
    layout: Layout,
    *,
    ranks: int = 1,
    address: str | None = None,
    on_idle: Callable[[], None] | None = None,
) -> None:
    """A `sweeps.backend.Backend` on Ray, which it starts and stops unless it gets an address.

    With GPUs, a host has one, or a share of one; several ranks have a placement group's bundles.

    Raises:
        MachineError: If the installed Ray is not one that this backend was tested with, the cluster has
            too few CPUs, or Ray itself cannot be started or reached.
    """
    from cluster.hardware import this_machine_gib
    from sweeps.ray_backend.contract import HostPlan
    from sweeps.ray_backend.session import Session

    processes = layout.hosts * ranks
    with Session(hosts=processes, address=address) as session:
        from sweeps.ray_backend.drive import drive

        memory_gib = None if address else _FOR_HOSTS * this_machine_gib() / processes
        plan = HostPlan(
            layout.hosts, layout.slots, layout.threads, folder, memory_gib, ranks, prompt=director.judges
        )
        drive(director, session, plan, on_idle)
