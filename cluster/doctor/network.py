"""Ports, MLflow and Ray: who listens where."""

from __future__ import annotations

import os
import socket
import stat
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from cluster.doctor.finding import Finding, bad, doubtful, good

__all__ = ["await_ray", "check_mlflow", "check_ports", "check_ray", "check_token", "interfaces"]

_WAIT_S = 3.0
#: Ray's head and its dashboard (known: Ray's defaults).
RAY_PORTS = (6379, 8265)
_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306}


def check_ports(ports: tuple[int, ...] = RAY_PORTS) -> Finding:
    """Loopback ports can be had, and those of a Ray head are not taken."""
    try:
        with socket.socket() as any_port:
            any_port.bind(("127.0.0.1", 0))
    except OSError as error:
        return bad("ports", f"no loopback port can be bound: {error.strerror}", "Bring up the lo interface.")
    taken = [str(port) for port in ports if _answers("127.0.0.1", port) is None]
    if taken:
        text = f"taken on this machine: port {' and '.join(taken)}"
        remedy = "A Ray head started here needs other ports: ray start --head --port N --dashboard-port M."
        return doubtful("ports", text, remedy)
    return good("ports", f"loopback ports can be bound; {', '.join(map(str, ports))} are free")


def check_mlflow(uri: str) -> Finding:
    """The tracking store answers; its address is shown without a password."""
    parts = urlsplit(uri)
    scheme = parts.scheme.partition("+")[0]
    if scheme == "sqlite":
        return good("mlflow", "SQLite, made when the first run is recorded")
    if scheme not in _PORTS or not parts.hostname:
        return bad(
            "mlflow",
            f"a URI of the form {scheme or 'without scheme'}: is no server",
            "Give http://host:port.",
        )
    shown = f"{scheme}://{parts.hostname}:{_port(parts.port, scheme)}{parts.path if 'http' in scheme else ''}"
    fault = _http(shown) if "http" in scheme else _answers(parts.hostname, _port(parts.port, scheme))
    if fault is not None:
        return bad("mlflow", f"{shown} does not answer: {fault}", "Start it, or correct MLFLOW_TRACKING_URI.")
    return good("mlflow", f"{shown} answers")


def check_ray(address: str) -> Finding:
    """Something listens at the address of a Ray head; `auto` is that of the Ray that runs on this machine."""
    if address == "auto":
        return good("ray", "auto: the one that this machine has joined")
    place = _place(address)
    if place is None:
        return bad(
            "ray", f"{address} is not host:port", "Give the head's address, for example 10.0.0.1:6379."
        )
    fault = _answers(*place)
    if fault is not None:
        return bad(
            "ray", f"{address} does not answer: {fault}", "Start the head, or open the port to this machine."
        )
    return good("ray", f"{address} answers (what runs there is not asked)")


def await_ray(address: str, wait_s: float) -> None:
    """Returns once something listens at the address of a Ray head, or after so long: `check_ray` judges."""
    end = time.monotonic() + wait_s
    place = _place(address)
    while place and _answers(*place) is not None and time.monotonic() < end:
        time.sleep(0.5)


def _place(address: str) -> tuple[str, int] | None:
    """Host and port of `host:port`; None for anything else."""
    host, _, port = address.rpartition(":")
    return None if "://" in address or not host or not port.isdigit() else (host.strip("[]"), int(port))


def check_token(environment: Mapping[str, str] = os.environ) -> Finding:
    """Ray asks for a token, and nobody else can read it."""
    if environment.get("RAY_AUTH_MODE") != "token":
        text = "RAY_AUTH_MODE is not token: whoever reaches the cluster's ports runs programs on it"
        return doubtful("ray-token", text, "Set RAY_AUTH_MODE=token and the same token on every node.")
    if environment.get("RAY_AUTH_TOKEN"):
        return good("ray-token", "asked for, from the environment")
    path = Path(environment.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if not path.is_file():
        return bad("ray-token", f"there is no token in {path}", "Make one: `ray get-auth-token --generate`.")
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        return bad("ray-token", f"others can read {path}", f"Run `chmod 600 {path}`.")
    return good("ray-token", f"asked for, from {path}")


def interfaces() -> dict[str, str]:
    """Network interfaces of this machine with their IPv4 addresses, loopback left out."""
    return {
        name: each.address
        for name, addresses in psutil.net_if_addrs().items()
        for each in addresses
        if each.family == socket.AF_INET and not each.address.startswith("127.")
    }


def _port(port: int | None, scheme: str) -> int:
    return _PORTS[scheme] if port is None else port


def _answers(host: str, port: int) -> str | None:
    """Nothing where a TCP connection can be made, else why not."""
    try:
        with socket.create_connection((host, port), timeout=_WAIT_S):
            return None
    except OSError as error:
        return error.strerror or str(error)


def _http(address: str) -> str | None:
    """Nothing where MLflow's health page answers, even if it asks for a password; else why not."""
    request = urllib.request.Request(f"{address.rstrip('/')}/health")
    try:
        with urllib.request.urlopen(request, timeout=_WAIT_S):
            return None
    except urllib.error.HTTPError as error:
        return None if error.code in (401, 403) else f"HTTP status {error.code}"
    except OSError as error:
        return str(getattr(error, "reason", error))
