"""Ray itself: which versions are accepted, how it starts on this machine, and how it ends."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

from replora.errors import MachineError
from replora.train import heap
from sweeps.ray_backend.leftovers import PrivateFolder, remove_leftovers

# Ray reads these when it is imported or when its processes start, so they come before the import.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # known: usage statistics are on by default
os.environ.setdefault("RAY_memory_monitor_refresh_ms", "0")  # its kills end a sweep; hosts fail alone instead
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a host without GPU asks for "cpu" by name
if heap.heap_of_trials() == "jemalloc":  # Ray takes its own away from workers unless it is told not to
    os.environ.setdefault("RAY_LD_PRELOAD_ON_WORKERS", "1")
    os.environ.setdefault("MALLOC_CONF", heap.CONF)

import ray
from ray._private import worker
from ray.exceptions import RayError

from sweeps.ray_backend.local import start_local

__all__ = ["Session", "Share", "check_version"]

#: Releases whose Tune controller this backend was tested with (it replaces the controller's actor manager).
TESTED = ("2.60.",)
#: Longest wait for the head of a cluster to answer, in seconds (choice).
_CONNECT_S = 5.0
#: A socket of Ray, of which the kernel allows this many characters.
_SOCKET = "/replora-ray-xxxxxxxx/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"
_SOCKET_LONGEST = 107


@dataclass(frozen=True)
class Share:
    """What one host takes of the cluster.

    Attributes:
        cpus: Ray CPUs.
        gpus: Ray GPUs, a fraction where several hosts share one.
        device: Where the host's packs live.
    """

    cpus: float
    gpus: float
    device: str


def check_version() -> None:
    """Refuses a Ray whose internals this backend was not tested with.

    Raises:
        MachineError: With the installed release and the tested ones.
    """
    try:
        installed = version("ray")
    except PackageNotFoundError:
        raise MachineError("Ray is not installed. Install ray[tune], or set backend: in-process.") from None
    if not installed.startswith(TESTED):
        tested = ", ".join(f"{prefix}*" for prefix in TESTED)
        raise MachineError(
            f"Ray {installed} is installed, but the Ray backend was tested with {tested} only (it relies on "
            f"parts of Tune's controller). Install one of those, or set backend: in-process."
        )


class Session:
    """A connection to Ray: a private instance on this machine, or a running cluster.

    Use as a context manager; on exit Ray is shut down only if the session started it.
    """

    def __init__(self, *, hosts: int, address: str | None = None) -> None:
        self._hosts = hosts
        self._address = address
        self._folder: PrivateFolder | None = None
        self._owns_ray = False

    def __enter__(self) -> Session:
        check_version()
        self._folder = _private_folder()
        if not ray.is_initialized():
            self._owns_ray = True
            try:
                self._start()
            except BaseException as error:  # Ctrl-C, too: half a Ray must not stay behind
                self.__exit__(None, None, None)
                if not isinstance(error, RayError | OSError | RuntimeError | ValueError):
                    raise
                where = self._address or "this machine"
                raise MachineError(f"Ray cannot be used on {where}: {error}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._owns_ray:
            ray.shutdown()
        if self._folder is not None:
            self._folder.remove()
            self._folder = None

    @property
    def scratch(self) -> Path:
        """A folder for Ray's and Tune's own files; removed at the end."""
        assert self._folder is not None
        return self._folder.path

    def share(self, threads: int, ranks: int = 1) -> Share:
        """What each process gets, when it runs that many CPU threads and hosts have that many ranks.

        Raises:
            MachineError: If the cluster has too few CPUs for the hosts, or GPUs for their ranks, in all or
                on its nodes.
        """
        total = ray.cluster_resources()
        cpus = threads if self._address else 1
        if total.get("CPU", 0) < cpus * self._hosts:
            what = "ranks" if ranks > 1 else "hosts"
            raise MachineError(
                f"{self._hosts} {what} of {cpus} CPUs need {cpus * self._hosts} CPUs, but the cluster has "
                f"{total.get('CPU', 0):g}. Lower resources.hosts, resources.threads or run.engine.ranks, or "
                "add machines."
            )
        gpus = min(1.0, total.get("GPU", 0) / self._hosts)
        if 0 < gpus < 1 and ranks > 1:
            raise MachineError(
                f"{self._hosts // ranks} hosts of {ranks} ranks need {self._hosts} GPUs, but the cluster has "
                f"{total['GPU']:g}. Lower resources.hosts or run.engine.ranks, or add machines."
            )
        share = Share(cpus, gpus, "cuda" if gpus else "cpu")
        places = [_places(node, share) for node in ray.nodes() if node["Alive"]]
        if sum(places) < self._hosts:
            raise MachineError(_too_narrow(share, self._hosts, ranks, places))
        return share

    def _start(self) -> None:
        worker.print_to_stdstream = _log_message
        if self._address:
            _check_reachable(self._address)
            ray.init(self._address, log_to_driver=False, logging_level=logging.ERROR)
            return
        start_local(self._hosts, self.scratch / "ray")


def _places(node: Mapping[str, Any], share: Share) -> int:
    """Processes of a sweep that fit a node."""
    found = node["Resources"]
    wanted = {"CPU": share.cpus} | ({"GPU": share.gpus} if share.gpus else {})
    return min(int(found.get(name, 0.0) / each + 1e-6) for name, each in wanted.items())


def _too_narrow(share: Share, processes: int, ranks: int, places: Sequence[int]) -> str:
    """Why processes do not fit the nodes although the cluster has enough in all, and what would."""
    each = f"{share.cpus:g} CPUs" + (f" and {share.gpus:g} GPUs" if share.gpus else "")
    fitting = sum(places) // ranks
    cure = f"Set resources.hosts to {fitting}" if fitting else "Lower run.engine.ranks or resources.threads"
    what = "ranks" if ranks > 1 else "hosts"
    return (
        f"{processes} {what} of {each} do not fit the cluster's {len(places)} nodes, which hold "
        f"{', '.join(map(str, places))} of them. {cure}, or add machines."
    )


def _check_reachable(address: str) -> None:
    """Refuses an address where nothing listens: Ray itself would end this process after a minute."""
    host, _, port = address.rpartition(":")
    if address == "auto":
        return
    if "://" in address or not host or not port.isdigit():
        raise ValueError("the address must be host:port of the cluster's head, or auto")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S):
        pass


def _log_message(data: Mapping[str, Any], ignore_prefix: bool) -> None:
    """Keeps what Ray has to say (the death of a worker) off stdout, which belongs to the answer of a verb."""
    del ignore_prefix
    for line in data["lines"]:
        logging.getLogger(__name__).debug("%s", line)


def _private_folder() -> PrivateFolder:
    """A new folder whose path is short enough for Ray's sockets."""
    for parent in (tempfile.gettempdir(), "/tmp"):
        if len(parent + _SOCKET) <= _SOCKET_LONGEST and os.access(parent, os.W_OK):
            remove_leftovers(Path(parent))
            return PrivateFolder(Path(parent))
    raise MachineError(
        f"no temporary folder with a short path: {tempfile.gettempdir()} is too long for socket names and "
        f"/tmp is not writable. Set TMPDIR to a short path."
    )
