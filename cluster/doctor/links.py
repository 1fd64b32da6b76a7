"""Whether processes can train together: they sum numbers, over NCCL where GPUs are, over gloo elsewhere.

Plain data in, plain data out, and no torch: the processes are `cluster.doctor.collective`, each ended when
the time is over, so that a connection that hangs is a finding and not a wait.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.doctor.finding import Finding, bad, good
from cluster.doctor.network import interfaces
from cluster.doctor.software import visible_gpus
from replora.train.gang import free_address

__all__ = ["Gang", "Heard", "check_links", "judge", "run_gang"]

#: Longest wait for all sums, in seconds (choice: importing torch from slow storage takes most of a minute).
LIMIT_S = 90.0
#: After one process has failed the others wait for it in vain; they get so long to say why (choice).
_GRACE_S = 3.0
#: What processes say one after the other -> what went wrong if that was the last that all of them said.
_STOPPED = {
    "": "a process did not start",
    "started": "gloo did not connect",
    "gloo": "NCCL did not connect",
    "nccl": "",
}


@dataclass(frozen=True)
class Gang:
    """The processes of one examination.

    Attributes:
        address: `host:port` where rank 0 listens.
        places: Node and number of its processes, in the order of ranks.
        limit_s: Longest wait, in seconds.
    """

    address: str
    places: tuple[tuple[str, int], ...]
    limit_s: float = LIMIT_S

    @property
    def ranks(self) -> int:
        """Processes in all."""
        return sum(count for _, count in self.places)


@dataclass(frozen=True)
class Heard:
    """What the processes of one node said.

    Attributes:
        node: Its address.
        gpus: Whether they have GPUs.
        stages: The last stage of each, and the seconds of its sum.
        error: Why they did not come to their end; empty where they did.
        networks: The node's interfaces with their addresses, for a person.
    """

    node: str
    gpus: bool
    stages: tuple[tuple[str, float], ...]
    error: str
    networks: str


def check_links(limit_s: float = LIMIT_S) -> Finding:
    """The GPUs of this machine sum numbers together; without GPUs, two processes do."""
    here = "this machine"
    gang = Gang(free_address(), ((here, len(visible_gpus()) or 2),), limit_s)
    heard = run_gang(gang, here)
    assert heard is not None
    return judge(gang, [heard])


def run_gang(gang: Gang, node: str) -> Heard | None:
    """Runs a node's processes of a gang to their end, or to the end of the time; None where it has none."""
    first = 0
    for name, count in gang.places:
        if name == node:
            return _heard(gang, node, range(first, first + count))
        first += count
    return None


def _heard(gang: Gang, node: str, ranks: Sequence[int]) -> Heard:
    devices = visible_gpus()
    processes = [_started(gang, rank, devices, place) for place, rank in enumerate(ranks)]
    _wait(processes, gang.limit_s)
    ended = [process.poll() for process in processes]
    for process in processes:
        process.kill()
    said = [process.communicate() for process in processes]
    errors = [_last_word(err, status) for (_, err), status in zip(said, ended, strict=True) if status]
    if None in ended:
        errors.append(f"no answer within {gang.limit_s:g} s")
    networks = ", ".join(f"{name} {address}" for name, address in interfaces().items())
    stages = tuple(_last_stage(out) for out, _ in said)
    return Heard(node, bool(devices), stages, errors[0] if errors else "", networks)


def _started(gang: Gang, rank: int, devices: Sequence[str], place: int) -> subprocess.Popen[str]:
    own = {"CUDA_VISIBLE_DEVICES": devices[place]} if devices else {}
    environment = {"NCCL_DEBUG": "WARN", **os.environ, **own, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "cluster.doctor.collective", str(rank), str(gang.ranks), gang.address]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, env=environment)


def _wait(processes: Sequence[subprocess.Popen[str]], limit_s: float) -> None:
    """Until all have ended, one has failed, or the time is over."""
    end = time.monotonic() + limit_s
    while any(process.poll() is None for process in processes) and time.monotonic() < end:
        if any(process.poll() for process in processes):
            end = min(end, time.monotonic() + _GRACE_S)
        time.sleep(0.05)


def _last_stage(output: str) -> tuple[str, float]:
    said = [json.loads(line) for line in output.splitlines() if line.startswith('{"stage"')]
    return (str(said[-1]["stage"]), float(said[-1]["seconds"])) if said else ("", 0.0)


def _last_word(stderr: str, status: int) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return lines[-1][:200] if lines else f"ended with {f'signal {-status}' if status < 0 else status}"


def judge(gang: Gang, heard: Sequence[Heard]) -> Finding:
    """The finding about a gang, from what its nodes heard."""
    wanted = "nccl" if all(each.gpus for each in heard) else "gloo"
    nodes = gang.places[0][0] if len(gang.places) == 1 else f"{len(gang.places)} nodes"
    what = f"{gang.ranks} {'GPUs' if wanted == 'nccl' else 'processes'} on {nodes}"
    order = list(_STOPPED)
    least, node = min((order.index(stage), each.node) for each in heard for stage, _ in each.stages)
    errors = [f"{each.node}: {each.error}" for each in heard if each.error]
    if not errors and order[least] == wanted:
        slowest = max(seconds for each in heard for _, seconds in each.stages)
        return good("links", f"{what} sum 16 MiB over {wanted} in {1000 * slowest:.0f} ms")
    said = f" ({errors[0]})" if errors else ""
    why = _STOPPED[order[least]] if order[least] != wanted else "one did not end"
    text = f"{what} cannot sum numbers: {why}, {node} first{said}"
    return bad("links", text, _remedy(order[least], heard, alone=len(gang.places) == 1))


def _remedy(least: str, heard: Sequence[Heard], *, alone: bool) -> str:
    shown = "; ".join(f"{each.node} has {each.networks or 'none'}" for each in heard)
    if least == "":
        return "Run `replora doctor --deep` there, with the same Python and CUDA_VISIBLE_DEVICES."
    if least == "started":
        return (
            "Open all TCP ports between the machines, and set GLOO_SOCKET_IFNAME, before Ray starts, to the "
            f"interface that they share: {shown}."
        )
    if alone:
        return (
            "Try NCCL_P2P_DISABLE=1 (the IOMMU or a virtual machine blocks PCIe access between GPUs), then a "
            "larger /dev/shm (--shm-size=2g) or NCCL_SHM_DISABLE=1; NCCL_DEBUG=INFO says which."
        )
    return (
        f"Set NCCL_SOCKET_IFNAME, before Ray starts, to the interface that the machines share: {shown}. "
        "Without working InfiniBand also NCCL_IB_DISABLE=1; NCCL_DEBUG=INFO says more."
    )
