"""Several hosts on one machine: network namespaces on a bridge, each with a /dev/shm and a Ray of its own.

Needs root and iproute2. Everything is ended by process id and by name.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.needs import missing

__all__ = ["PORT", "Network", "several_hosts"]

PORT = 6379
#: The head finds a node that is cut off within about 6 s instead of Ray's usual minute.
QUICK = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}


@dataclass
class Node:
    """A host: the process that keeps its namespaces, and its Ray."""

    name: str
    address: str
    holder: subprocess.Popen[bytes]
    ray: subprocess.Popen[bytes] | None = None


@dataclass
class Network:
    """Hosts on one bridge."""

    folder: Path
    tag: str = field(default_factory=lambda: secrets.token_hex(2))
    token: str = field(default_factory=lambda: secrets.token_hex(32))
    nodes: list[Node] = field(default_factory=list)

    @property
    def bridge(self) -> str:
        """Name of the bridge."""
        return f"rb{self.tag}"

    @property
    def scratch(self) -> Path:
        """Where every node's Ray keeps its files; short, and private to each node."""
        return Path(f"/tmp/rpl-{self.tag}")

    @property
    def head(self) -> str:
        """Address of the cluster."""
        return f"{self.nodes[0].address}:{PORT}"

    def build(self) -> None:
        """The bridge, without any node."""
        self.scratch.mkdir()
        _ip("link", "add", self.bridge, "type", "bridge")
        _ip("link", "set", self.bridge, "up")

    def add(self, cpus: int) -> Node:
        """Another host that joins the cluster; the first one is its head."""
        number = len(self.nodes)
        name, outer, inner = f"rn{self.tag}{number}", f"ro{self.tag}{number}", f"ri{self.tag}{number}"
        address = f"10.213.{int(self.tag[:2], 16)}.{number + 1}"
        _ip("netns", "add", name)
        _ip("link", "add", outer, "type", "veth", "peer", "name", inner)
        _ip("link", "set", outer, "master", self.bridge, "up")
        _ip("link", "set", inner, "netns", name)
        _ip("-n", name, "addr", "add", f"{address}/24", "dev", inner)
        _ip("-n", name, "link", "set", inner, "up")
        _ip("-n", name, "link", "set", "lo", "up")
        own = f"mount -t tmpfs none /dev/shm && mount -t tmpfs none {self.scratch} && exec sleep 3600"
        holder = subprocess.Popen(["ip", "netns", "exec", name, "unshare", "-m", "sh", "-c", own])
        node = Node(name, address, holder)
        self.nodes.append(node)
        comm = Path(f"/proc/{holder.pid}/comm")
        while comm.read_text() != "sleep\n":  # until both are mounted
            assert holder.poll() is None, f"no file systems of its own for {name}"
            time.sleep(0.01)
        node.ray = self.start(node, *self._ray(node, cpus))
        return node

    def _ray(self, node: Node, cpus: int) -> list[str]:
        ray = str(Path(sys.executable).with_name("ray"))
        words = [ray, "start", "--block", f"--node-ip-address={node.address}", f"--num-cpus={cpus}"]
        words += ["--object-store-memory=80000000"]
        if node is not self.nodes[0]:
            return [*words, f"--address={self.head}"]
        return [*words, "--head", f"--port={PORT}", "--include-dashboard=false", f"--temp-dir={self.scratch}"]

    def start(self, node: Node, *command: str) -> subprocess.Popen[bytes]:
        """A process on a host, in a session of its own; its output goes to a file beside the sweep."""
        environment = {
            **os.environ,
            **QUICK,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "TMPDIR": str(self.scratch),
        }
        inside = ["nsenter", "-t", str(node.holder.pid), "-m", "-n", *command]
        with (self.folder / f"{node.name}.log").open("ab") as log:
            return subprocess.Popen(
                inside, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def kill(self, node: Node) -> None:
        """The host loses power."""
        for pid in _pids(node.name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in (node.ray, node.holder):
            if process is not None:
                process.kill()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(10)

    def cut(self, node: Node) -> None:
        """The host's cable is pulled; its processes go on."""
        _ip("link", "set", f"ro{self.tag}{self.nodes.index(node)}", "down")

    def remove(self) -> None:
        """Ends every process of every host and takes the network away."""
        for node in self.nodes:
            self.kill(node)
            outer = f"ro{self.tag}{self.nodes.index(node)}"
            for words in (("link", "del", outer), ("netns", "del", node.name)):
                subprocess.run(["ip", *words], check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", self.bridge], check=False, capture_output=True)
        shutil.rmtree(self.scratch, ignore_errors=True)


@contextlib.contextmanager
def several_hosts(folder: Path) -> Iterator[Network]:
    """A network without hosts; at the end nothing of it is left."""
    if os.geteuid() != 0 or any(shutil.which(name) is None for name in ("ip", "unshare", "nsenter")):
        missing("network namespaces need root, iproute2 and util-linux")
    network = Network(folder)
    try:
        try:
            network.build()
        except subprocess.CalledProcessError as error:
            missing(f"network namespaces cannot be made here: {error.stderr.decode().strip()}")
        yield network
    finally:
        network.remove()


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _pids(namespace: str) -> list[int]:
    done = subprocess.run(["ip", "netns", "pids", namespace], check=False, capture_output=True, text=True)
    return [int(pid) for pid in done.stdout.split()]
