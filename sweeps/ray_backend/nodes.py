"""Runs a function on every node of a Ray cluster."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from replora.errors import MachineError
from sweeps.ray_backend.session import Session

__all__ = ["on_every_node"]

_LOOK_S = 1.0
_WAIT_S = 120.0  # choice: a node that must import everything from slow storage first takes a minute


def on_every_node(
    address: str,
    calls: Callable[[Callable[[Callable[..., object], tuple[object, ...]], dict[str, object]]], Any],
    expect: int = 0,
    wait_s: float = 0.0,
) -> Any:
    """Joins a cluster and hands out `ask(function, arguments)`: answers of all living nodes, by address.

    The function gets the node's address as its last argument; it must be importable on the nodes.

    Args:
        address: `host:port` of the head, or `auto`.
        calls: Called with `ask`; its result is this one's.
        expect: Nodes with CPUs or GPUs that are waited for first.
        wait_s: How long.

    Raises:
        MachineError: If the cluster cannot be joined, nodes do not join it, or one does not answer.
    """
    import ray  # after the session's module has set what Ray reads when it is imported
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    with Session(hosts=1, address=address):
        _wait_for(expect, wait_s)
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


def _wait_for(expect: int, wait_s: float) -> None:
    """Until so many nodes that can train have joined; a head that only drives does not count."""
    import ray

    end = time.monotonic() + wait_s
    while (joined := sum(map(_trains, ray.nodes()))) < expect:
        if time.monotonic() > end:
            raise MachineError(
                f"{joined} of {expect} nodes with CPUs or GPUs joined Ray within {wait_s:g} s.\n"
                "  The missing ones say why in their own logs; a longer --wait gives them more time."
            )
        time.sleep(_LOOK_S)


def _trains(node: dict[str, Any]) -> bool:
    resources = node["Resources"]
    return bool(node["Alive"] and (resources.get("CPU", 0) or resources.get("GPU", 0)))
