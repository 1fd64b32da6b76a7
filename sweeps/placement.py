"""Whether a sweep's hosts fit the machine: fewer slots or hosts where they do not, or a refusal at once.

What the planner cannot foresee (a backbone of unknown sizes, a cluster's machines) is left as it is; there
the sweep meets what its hosts meet.
"""

from __future__ import annotations

from dataclasses import replace

from cluster.anatomy import Anatomy, anatomy_of
from cluster.calibration import remembered
from cluster.hardware import Hardware
from cluster.here import hardware_here
from cluster.memory import GIB, Setting, memory_of
from cluster.planner import Pins, plan
from replora.config import RunConfig
from replora.errors import PlanError
from sweeps.config import SweepConfig
from sweeps.resources import Layout, visible_gpus

__all__ = ["placed"]


def placed(config: SweepConfig, layout: Layout, hardware: Hardware | None = None) -> Layout:
    """The layout, narrowed to what the planner says that this machine holds.

    Args:
        config: The sweep; its base run is what is weighed.
        layout: As wished.
        hardware: The machine; this one if None.

    Raises:
        PlanError: If one trial does not fit, or hosts and slots that the sweep's file demands do not; the
            message says what would.
    """
    anatomy = None if config.resources.address else _known_anatomy(config.run)
    if anatomy is None or anatomy.tokens is None:
        return layout
    hardware = hardware or hardware_here(len(visible_gpus()))
    kept = remembered(config.run, hardware.device)
    hardware = hardware.model_copy(update={"kept": kept} if kept is not None else {})
    for hosts in _choices(layout.hosts, fixed=config.resources.hosts is not None or hardware.gpus > 0):
        for slots in _choices(layout.slots, fixed=config.resources.slots is not None):
            ranks = hosts * config.run.engine.ranks
            if _needed(config.run, anatomy, hardware, slots) <= _available(hardware, ranks):
                return replace(layout, hosts=hosts, slots=slots)
    _refuse(config.run, anatomy, hardware, layout.slots)
    together = layout.hosts * _needed(config.run, anatomy, hardware, 1) / GIB
    raise PlanError(
        f"{layout.hosts} hosts need {together:.1f} GiB on a machine with {hardware.host_gib:.1f} GiB.\n"
        "  Lower resources.hosts, or leave it out."
    )


def _choices(wished: int, *, fixed: bool) -> list[int]:
    return [wished] if fixed else list(range(wished, 0, -1))


def _known_anatomy(run: RunConfig) -> Anatomy | None:
    try:
        return anatomy_of(run)
    except PlanError:
        return None


def _needed(run: RunConfig, anatomy: Anatomy, hardware: Hardware, slots: int) -> int:
    """Bytes of one rank of a host."""
    assert anatomy.tokens is not None
    engine, micro = run.engine, run.train.micro_batch or run.train.batch // run.engine.ranks
    setting = Setting(
        micro, anatomy.tokens, slots, engine.zero, engine.ranks, engine.recompute, engine.offload
    )
    return memory_of(run, anatomy, setting, hardware.device, hardware.kept).total


def _available(hardware: Hardware, ranks: int) -> float:
    """Bytes for each rank: a GPU of its own, or its share of the machine's memory."""
    return hardware.place_gib * GIB / (1 if hardware.gpus else ranks)


def _refuse(run: RunConfig, anatomy: Anatomy, hardware: Hardware, slots: int) -> None:
    """Lets the planner say what does not fit and what would, where a single host is too much."""
    engine, micro = run.engine, run.train.micro_batch or run.train.batch // run.engine.ranks
    pins = Pins(engine.zero, engine.ranks, micro, engine.recompute, engine.offload)
    plan(run, hardware, slots, pins=pins, anatomy=anatomy)
