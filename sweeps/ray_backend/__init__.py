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

__all__ = ["run"]

#: Share of a machine's memory for hosts; a host that wants more fails alone, before the kernel ends
#: processes (choice: the rest is for the driver, Ray and the system).
_FOR_HOSTS = 0.85


def run(  # noqa: PLR0913 - the contract of both backends (docs/architecture.md)
    director: Director,
    *,
    folder: Path,
    hosts: int,
    slots: int,
    threads: int,
    address: str | None = None,
    on_idle: Callable[[], None] | None = None,
    ranks: int = 1,
) -> None:
    """Runs a sweep to its end on Ray; returns when `director.done`.

    Args:
        director: Decides which trials run and which stop, and records everything.
        folder: Of the sweep; on a cluster, one that every node sees.
        hosts: Long-lived processes that hold a frozen base each; with GPUs, one for each or a share.
        slots: Trials that train at once on one host.
        threads: CPU threads of one host.
        address: Of a running Ray cluster (`auto` finds the local one); null starts Ray on this machine
            and stops it at the end.
        on_idle: Called several times a second, for a live display.
        ranks: Processes of one host; more than one are a gang in the bundles of a placement group.

    Raises:
        MachineError: If the installed Ray is not one that this backend was tested with, the cluster has
            too few CPUs, or Ray itself cannot be started or reached.
    """
    from cluster.hardware import this_machine_gib
    from sweeps.ray_backend.contract import HostPlan
    from sweeps.ray_backend.session import Session

    with Session(hosts=hosts * ranks, address=address) as session:
        from sweeps.ray_backend.drive import drive

        memory_gib = None if address else _FOR_HOSTS * this_machine_gib() / (hosts * ranks)
        plan = HostPlan(hosts, slots, threads, folder, memory_gib, ranks, prompt=director.judges)
        drive(director, session, plan, on_idle)
