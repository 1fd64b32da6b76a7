"""How a sweep's hosts lie on the machines of a cluster: which file asks for what, and whether it fits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from replora.config import RunConfig
from replora.errors import ConfigError
from replora.reading.compose import expanded
from replora.reading.document import Document, read_document

__all__ = ["Machines", "Wishes", "layout", "misfits", "wishes_of"]


@dataclass(frozen=True)
class Machines:
    """Machines that are alike.

    Attributes:
        nodes: How many.
        gpus: Of each; 0 trains on its cores.
        cpus: Of each.
    """

    nodes: int
    gpus: int
    cpus: int

    @property
    def places(self) -> int:
        """Processes that one machine holds: one for each GPU, or for each core."""
        return self.gpus or self.cpus

    @property
    def kind(self) -> str:
        """What a place is."""
        return "GPUs" if self.gpus else "CPUs"


@dataclass(frozen=True)
class Wishes:
    """What a sweep's file says about places.

    Attributes:
        ranks: Places that one trial, or pack, spans.
        hosts: Trials, or packs, at once; None where the file leaves it open.
        threads: CPU threads of each rank; likewise.
    """

    ranks: int = 1
    hosts: int | None = None
    threads: int | None = None


def wishes_of(config: Path) -> Wishes:
    """What a sweep's file says about places; its other faults are found by `replora sweep`.

    Raises:
        ConfigError: If the file cannot be read or is no sweep.
    """
    data = read_document(config).data
    if not isinstance(data, dict) or "space" not in data:
        raise ConfigError(f"{config} is not a sweep: it has no space. Run a single run with `replora train`.")
    run = expanded(RunConfig, Document(data.get("run")), (config,)).data
    ranks = _number(run, "engine", "ranks")
    return Wishes(ranks or 1, _number(data, "resources", "hosts"), _number(data, "resources", "threads"))


def layout(machines: Machines, wishes: Wishes) -> tuple[int, int]:
    """Hosts on all machines, and CPU threads of each of their ranks; a host's ranks lie on one machine."""
    hosts = wishes.hosts or machines.nodes * (machines.places // wishes.ranks)
    share = min(machines.cpus // machines.places, machines.nodes * machines.cpus // (hosts * wishes.ranks))
    return hosts, wishes.threads or max(1, share)


def misfits(machines: Machines, wishes: Wishes) -> Iterator[str]:
    """Why the machines cannot hold the hosts, and what would: one line each."""
    places, ranks, kind = machines.places, wishes.ranks, machines.kind
    if ranks > places:
        yield (
            f"  a trial spans {ranks} {kind} of one machine (run.engine.ranks), but each has {places}: give "
            f"--{kind.lower()} {ranks}, or set run.engine.ranks to {places} or less."
        )
        return
    hosts, threads = layout(machines, wishes)
    fitting = machines.nodes * (places // ranks)
    if hosts > fitting and (ranks > 1 or not machines.gpus):  # hosts of one rank may share a GPU
        yield (
            f"  {hosts} hosts (resources.hosts) of {ranks} {kind} do not fit {machines.nodes} machines with "
            f"{places}, which hold {fitting}: lower resources.hosts, or raise --nodes or --{kind.lower()}."
        )
    elif hosts * ranks * threads > machines.nodes * machines.cpus:
        needed = -(-hosts * ranks * threads // machines.nodes)
        yield (
            f"  {hosts} hosts with {ranks * threads} CPU threads each need {needed} CPUs on each machine, "
            f"which has {machines.cpus}: give --cpus {needed}, or lower resources.hosts or resources.threads."
        )


def _number(data: object, section: str, key: str) -> int | None:
    part = data.get(section) if isinstance(data, dict) else None
    value = part.get(key) if isinstance(part, dict) else None
    return value if isinstance(value, int) and value > 0 else None
