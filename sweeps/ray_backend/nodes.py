"""Runs a function on every node of a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from replora.errors import MachineError
from sweeps.ray_backend.session import Session

__all__ = ["on_every_node"]

_WAIT_S = 120.0  # choice: a node that must import everything from slow storage first takes a minute


def on_every_node(
    address: str,
    calls: Callable[[Callable[[Callable[..., object], tuple[object, ...]], dict[str, object]]], Any],
) -> Any:
    """Joins a cluster and hands out `ask(function, arguments)`: answers of all living nodes, by address.

    The function gets the node's address as its last argument; it must be importable on the nodes.

    Args:
        address: `host:port` of the head, or `auto`.
        calls: Called with `ask`; its result is this one's.

    Raises:
        MachineError: If the cluster cannot be joined, or a node does not answer.
    """
    import ray  # after the session's module has set what Ray reads when it is imported
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    with Session(hosts=1, address=address):
        nodes = {node["NodeManagerAddress"]: node["NodeID"] for node in ray.nodes() if node["Alive"]}

        def ask(function: Callable[..., object], arguments: tuple[object, ...]) -> dict[str, object]:
            remote = ray.remote(num_cpus=0, max_retries=0)(function)
            pending = {
                name: remote.options(
                    scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
                ).remote(*arguments, name)
                for name, node in nodes.items()
            }
            answers = {}
            for name, answer in pending.items():
                try:
                    answers[name] = ray.get(answer, timeout=_WAIT_S)
                except RayError as error:
                    said = str(error).strip().splitlines()[-1:] or [type(error).__name__]
                    raise MachineError(
                        f"the node {name} does not answer: {said[0]}\n"
                        "  replora must be installed there as here; run `replora doctor` on it by hand."
                    ) from error
            return answers

        return calls(ask)
