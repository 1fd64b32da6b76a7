"""The ranks of one host: rank actors in the bundles of one placement group, which are there all or none."""

from __future__ import annotations

import os
import socket
import time
from typing import Any

import ray
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from replora.errors import MachineError
from replora.train.process import limit_memory
from sweeps.ray_backend.contract import HostFactory, HostPlan, Trainer
from sweeps.ray_backend.session import Share

__all__ = ["Bundles", "FollowerActor", "make_trainer"]

#: Longest wait for the bundles of a host while no other one works, in seconds (choice: what an earlier host
#: held is freed in a few).
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
    """The placement group of one host: Ray places all of its bundles or none, when there is room."""

    def __init__(self, ranks: int, share: Share) -> None:
        """Asks for one bundle for each rank, on one node where they fit there."""
        self._bundle = {"CPU": share.cpus} | ({"GPU": share.gpus} if share.gpus else {})
        self._group = placement_group([self._bundle] * ranks, strategy="PACK")
        self._ranks, self._asked, self._placed = ranks, time.monotonic(), False

    @property
    def placed(self) -> bool:
        """Whether all bundles have found their place."""
        self._placed = self._placed or placement_group_table(self._group)["state"] == "CREATED"
        return self._placed

    @property
    def late(self) -> bool:
        """Whether they have waited for a place for too long."""
        return not self._placed and time.monotonic() - self._asked > _PLACE_S and not self.placed

    def refusal(self) -> MachineError:
        """That they find no place, and what is free."""
        free = {name: ray.available_resources().get(name, 0.0) for name in self._bundle}
        needed = ", ".join(f"{each:g} {name}" for name, each in self._bundle.items())
        left = ", ".join(f"{each:g} {name}" for name, each in free.items())
        return MachineError(
            f"the {self._ranks} ranks of a host found no place within {_PLACE_S:g} s: each needs {needed} on "
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
