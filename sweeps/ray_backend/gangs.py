"""The ranks of one host: rank actors in the bundles of one placement group, which are there all or none."""

from __future__ import annotations

import os
import socket
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from replora.errors import MachineError
from replora.train.process import limit_memory
from sweeps.ray_backend.contract import HostFactory, HostPlan, Trainer
from sweeps.ray_backend.session import Share

__all__ = ["Bundles", "FollowerActor", "make_trainer"]

#: Longest wait for the bundles of one host, in seconds (choice: what an earlier host held is freed in a few).
_PLACE_S = 60.0


class FollowerActor:
    """A rank other than 0: does what the leader's host does until it is ended."""

    def follow(self, factory: HostFactory, plan: HostPlan, device: str, rank: int, address: str) -> None:
        """Joins the gang and follows; returns only by an error."""
        os.environ["OMP_NUM_THREADS"] = str(plan.threads)
        from replora.train import ranks
        from sweeps.gang import follow

        ranks.join(rank, plan.ranks, address)
        follow(make_trainer(factory, plan, device))


class Bundles:
    """The placement group of one host."""

    def __init__(self, ranks: int, share: Share) -> None:
        """Reserves one bundle for each rank, on one node where they fit there.

        Raises:
            MachineError: If they do not fit, saying what is free.
        """
        bundle = {"CPU": share.cpus} | ({"GPU": share.gpus} if share.gpus else {})
        self._group = placement_group([bundle] * ranks, strategy="PACK")
        if not self._group.wait(_PLACE_S):
            remove_placement_group(self._group)
            free = {name: ray.available_resources().get(name, 0.0) for name in bundle}
            needed = ", ".join(f"{each:g} {name}" for name, each in bundle.items())
            left = ", ".join(f"{each:g} {name}" for name, each in free.items())
            raise MachineError(
                f"the {ranks} ranks of a host found no place within {_PLACE_S:g} s: each needs {needed} on "
                f"one node, and {left} are free in all. Lower run.engine.ranks, resources.hosts or "
                "resources.threads, end what else uses the cluster, or add machines; then resume the sweep."
            )

    def options(self, rank: int) -> dict[str, Any]:
        """Options of the actor of a rank."""
        strategy = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=rank)
        return {"scheduling_strategy": strategy}

    def release(self) -> None:
        """Frees the bundles, and ends what runs in them."""
        remove_placement_group(self._group)


def make_trainer(factory: HostFactory, plan: HostPlan, device: str) -> Trainer:
    """The trainer of this process.

    Raises:
        MachineError: If the sweep's folder cannot be seen from here.
    """
    if not plan.folder.is_dir():
        raise MachineError(
            f"the sweep's folder {plan.folder} does not exist on {socket.gethostname()}. Put the sweep on a "
            f"file system that every node of the cluster mounts at the same path."
        )
    if plan.memory_gib is not None and device == "cpu":
        limit_memory(plan.memory_gib)
    return factory(plan.slots, plan.threads, device)
