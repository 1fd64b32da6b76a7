"""A Ray of our own on this machine, without what a sweep never uses.

Measured: docs/decisions/0002-tune-trials-are-slots.md.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._private import node, ray_constants, services, state, utils

__all__ = ["start_local"]

#: Words of the raylet's command line, and what becomes of them (known: 2.60). Its two agents serve metrics,
#: jobs and runtime environments, and it waits until both are up: a second, and another of processor
#: time. `cat` takes their place; it ends with the pipe that the raylet gives to its agents. A port of
#: -1 is Ray's own word for an agent that does not listen. And a driver waits for workers that start ahead:
#: without them it goes on while the hosts' workers start.
_RAYLET_WORDS = {
    "--dashboard_agent_command": "cat",
    "--runtime_env_agent_command": "cat",
    "--metrics-agent-port": "-1",
    "--metrics_export_port": "-1",
    "--runtime_env_agent_port": "-1",
    "--dashboard_agent_listen_port": "-1",
    "--num_prestart_python_workers": "0",
}


def start_local(hosts: int, folder: Path) -> None:
    """Starts Ray with a CPU for each host; its files go to `folder`."""
    # Ray guards its ports with a token, and would write one into the home folder unless it is given one.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ.setdefault("RAY_enable_pipe_based_agent_to_parent_health_check", "1")
    with _only_what_runs_trials():
        ray.init(
            "local",  # never a cluster that RAY_ADDRESS happens to name
            num_cpus=hosts,
            include_dashboard=False,
            object_store_memory=80 * 2**20,  # nothing large travels through Ray (78 MiB is its minimum)
            # Loopback: a network that comes or goes cuts nothing, and nobody else reaches the ports. Only
            # with this very address do Ray's servers listen there alone (known: 2.60).
            _node_ip_address="127.0.0.1",
            _temp_dir=str(folder),
            log_to_driver=False,  # progress belongs to the sweep's own table
            logging_level=logging.ERROR,
        )


@contextmanager
def _only_what_runs_trials() -> Iterator[None]:
    """Starts Ray without autoscaler, log forwarder, dashboard server and agents.

    And on loopback: Ray itself replaces 127.0.0.1 by the machine's outer address.
    """
    changes: dict[tuple[Any, str], Any] = {
        (node.Node, name): lambda self, **options: None
        for name in ("start_monitor", "start_log_monitor", "start_api_server")
    }
    changes[services, "get_node"] = _get_node_promptly(services.get_node)
    changes[services, "start_ray_process"] = _without_agents(services.start_ray_process)
    changes[services, "resolve_ip_for_localhost"] = lambda host: host
    changes[utils, "get_dashboard_dependency_error"] = ImportError  # to look for it imports aiohttp
    before = {(owner, name): getattr(owner, name) for owner, name in changes}
    try:
        for (owner, name), value in changes.items():
            setattr(owner, name, value)
        yield
    finally:
        for (owner, name), value in before.items():
            setattr(owner, name, value)


def _without_agents(start_process: Callable[..., Any]) -> Callable[..., Any]:
    def start(command: Sequence[str], kind: str, *arguments: Any, **options: Any) -> Any:
        if kind == ray_constants.PROCESS_TYPE_RAYLET:
            kept = [word for word in command if word.partition("=")[0] not in _RAYLET_WORDS]
            command = kept + [f"{name}={value}" for name, value in _RAYLET_WORDS.items()]
        return start_process(command, kind, *arguments, **options)

    return start


def _get_node_promptly(get_node: Callable[..., Any]) -> Callable[..., Any]:
    """Looks for the new node every 20 ms before Ray does, because Ray looks once a second."""

    def prompt(gcs_address: str, node_id: str) -> Any:
        nodes = state.GlobalState()
        nodes._initialize_global_state(services._get_gcs_client_options(gcs_address))
        deadline = time.monotonic() + 30.0  # then Ray's own wait says what is wrong
        while time.monotonic() < deadline and all(known["NodeID"] != node_id for known in nodes.node_table()):
            time.sleep(0.02)
        return get_node(gcs_address, node_id)

    return prompt
