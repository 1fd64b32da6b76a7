"""Whether a sweep's hosts fit the machine: fewer slots or hosts where they do not, or a refusal at once.

Weighed is the largest member of the sweep's space (sweeps.largest), in every slot of every host. What
the planner cannot foresee (a backbone of unknown sizes, a cluster's machines) is left as it is; there
the sweep meets what its hosts meet.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from cluster.anatomy import Anatomy, anatomy_of
from cluster.calibration import remembered
from cluster.hardware import Hardware
from cluster.here import hardware_here
from cluster.memory import GIB, Memory, Setting, memory_of
from cluster.planner import count, engine_of, plan
from replora.errors import ConfigError, PlanError
from replora.load import run_from
from replora.train.heap import Heap, heap_here
from sweeps.config import Domain, Scalar, SweepConfig
from sweeps.largest import Member, contenders
from sweeps.resources import Layout, visible_gpus

__all__ = ["Placement", "placed"]


@dataclass(frozen=True)
class Placement:
    """A layout that the machine holds, and what decided it.

    Attributes:
        layout: Hosts, slots and threads.
        member: The member of the sweep that needs the most with so many slots; None where nothing is known
            of its memory.
        needed_gib: What a rank of a host needs if that member is in every slot.
        available_gib: What it may have.
    """

    layout: Layout
    member: Member | None = None
    needed_gib: float = 0.0
    available_gib: float = 0.0


def placed(config: SweepConfig, layout: Layout, hardware: Hardware | None = None) -> Placement:
    """The layout, narrowed to what the planner says that this machine holds.

    Args:
        config: The sweep; the largest member of its space is what is weighed.
        layout: As wished.
        hardware: The machine; this one if None.

    Raises:
        PlanError: If a member does not fit alone, or hosts and slots that the sweep's file demands do not;
            the message names the member and says what would.
    """
    scale = _Scale(config, hardware or hardware_here(len(visible_gpus())))
    if config.resources.address or not scale.known:
        return Placement(layout)
    for hosts in _choices(layout.hosts, fixed=config.resources.hosts is not None or scale.hardware.gpus > 0):
        for slots in _choices(layout.slots, fixed=config.resources.slots is not None):
            if scale.fits(hosts, slots):
                heaviest, needed = scale.heaviest(slots)
                chosen = replace(layout, hosts=hosts, slots=slots)
                return Placement(chosen, heaviest.member, needed / GIB, scale.available(hosts) / GIB)
    raise PlanError(_refusal(scale, layout))


def _choices(wished: int, *, fixed: bool) -> list[int]:
    return [wished] if fixed else list(range(wished, 0, -1))


@dataclass(frozen=True)
class _Known:
    """A member whose sizes are known, and what the allocator was measured to keep of its passes."""

    member: Member
    anatomy: Anatomy
    heap: Heap
    kept: float | None

    @property
    def base(self) -> tuple[str, str]:
        """Members that agree in it stand on one base."""
        return self.member.run.backbone.model_dump_json(), self.member.run.train.precision

    def memory(self, slots: int, device: str) -> Memory:
        """Bytes of one rank of a host with this member in every slot."""
        run, engine = self.member.run, self.member.run.engine
        micro = run.train.micro_batch or run.train.batch // engine.ranks
        shared = (engine.zero, engine.ranks, engine.recompute, engine.offload)
        setting = Setting(micro, self.anatomy.tokens or 1, slots, *shared)
        return memory_of(run, self.anatomy, setting, device, self.kept, self.heap)


class _Scale:
    """Weighs the members of a sweep on a machine.

    Args:
        config: The sweep.
        hardware: The machine.
    """

    def __init__(self, config: SweepConfig, hardware: Hardware) -> None:
        self.config, self.hardware = config, hardware
        self.known = list(self._known())

    def heaviest(self, slots: int) -> tuple[_Known, int]:
        """The member that needs the most in a host of so many slots, with the bytes of one rank.

        Where members differ in the base, a host may come to hold one for each slot.
        """
        weighed = [(each, each.memory(slots, self.hardware.device)) for each in self.known]
        bases = {each.base: memory.base for each, memory in weighed}
        needed = []
        for each, memory in weighed:
            others = sorted((held for base, held in bases.items() if base != each.base), reverse=True)
            needed.append((each, memory.total + sum(others[: slots - 1])))
        return max(needed, key=lambda found: found[1])

    def available(self, hosts: int) -> float:
        """Bytes for each rank: a GPU of its own, or its share of the machine's memory."""
        ranks = 1 if self.hardware.gpus else hosts * self.config.run.engine.ranks
        return self.hardware.place_gib * GIB / ranks

    def fits(self, hosts: int, slots: int) -> bool:
        """Whether every member fits in every slot."""
        return self.heaviest(slots)[1] <= self.available(hosts)

    def _known(self) -> Iterator[_Known]:
        heap = heap_here() if self.config.backend == "in-process" else self.hardware.trial_heap
        for member in contenders(self.config):
            try:
                anatomy = anatomy_of(member.run)
            except PlanError:
                continue
            if anatomy.tokens is not None:
                kept = remembered(member.run, self.hardware.device, heap)
                yield _Known(member, anatomy, heap, self.hardware.kept if kept is None else kept)


def _refusal(scale: _Scale, layout: Layout) -> str:
    """What does not fit, and single changes of the sweep's file each of which would do."""
    asked, hardware = scale.config.resources, scale.hardware
    hosts = layout.hosts if asked.hosts or hardware.gpus else 1
    slots = layout.slots if asked.slots else 1
    heaviest, needed = scale.heaviest(slots)
    parts = sorted(heaviest.memory(slots, hardware.device).parts().items(), key=lambda part: -part[1])
    shown = ", ".join(f"{name} {value / GIB:.1f}" for name, value in parts[:4] if value)
    several = hosts > 1 and not hardware.gpus
    trials = f"{count(slots, 'trial')} of {heaviest.member.words}"
    what = f"{hosts} hosts, each with {trials}, need" if several else f"a host with {trials} needs"
    place = "GPU" if hardware.gpus else "machine"
    cures = list(_cures(scale, heaviest.member, hosts, slots))
    cure = ", or ".join(cures) if cures else "take a machine with more memory, or a smaller backbone"
    return (
        f"{scale.config.name}: {what} {(hosts if several else 1) * needed / GIB:.1f} GiB on a {place} with "
        f"{hardware.place_gib:.1f} GiB (on each host {shown}).\n  {cure[0].upper()}{cure[1:]}."
    )


def _cures(scale: _Scale, member: Member, hosts: int, slots: int) -> Iterator[str]:
    """Changes after which every member fits; each was weighed."""
    if most := next((n for n in range(slots - 1, 0, -1) if scale.fits(hosts, n)), None):
        yield f"lower resources.slots to {most}"
    fewer = range(hosts - 1, 0, -1) if scale.config.resources.hosts else ()
    if most := next((n for n in fewer if scale.fits(n, slots)), None):
        yield f"lower resources.hosts to {most}"
    micro = member.run.train.micro_batch or member.run.train.batch
    smaller = [size for size in range(micro - 1, 0, -1) if micro % size == 0]
    changes = [("train.micro_batch", size) for size in smaller if "train.micro_batch" not in member.point]
    if found := next((size for key, size in changes if _fits_with(scale, {key: size}, hosts, slots)), None):
        yield f"set run.train.micro_batch to {found}"
    if not member.run.engine.recompute and _fits_with(scale, {"engine.recompute": True}, hosts, slots):
        yield "set run.engine.recompute to true"
    if scale.hardware.gpus:
        yield from _as_planned(scale, member, hosts, slots)
    for key, value in member.point.items():
        for domain, words in _narrower(scale.config.space[key], value):
            space = {**scale.config.space, key: domain}
            changed = _Scale(scale.config.model_copy(update={"space": space}), scale.hardware)
            if changed.known and changed.fits(hosts, slots):
                yield words.format(key=f"space.{key}")
                break


def _as_planned(scale: _Scale, member: Member, hosts: int, slots: int) -> Iterator[str]:
    """Several GPUs for each trial, as the planner would lay this member out."""
    try:
        setting = plan(member.run, scale.hardware, slots).chosen.setting
    except PlanError:
        return
    change = {f"engine.{key}": value for key, value in engine_of(setting).items()}
    if "train.micro_batch" not in member.point:
        change["train.micro_batch"] = setting.micro_batch
    if setting.ranks > 1 and _fits_with(scale, change, hosts, slots):
        shown = " ".join(f"run.{key}={str(value).lower()}" for key, value in change.items())
        yield f"give each trial {setting.ranks} GPUs: {shown}"


def _fits_with(scale: _Scale, change: Mapping[str, bool | int | str], hosts: int, slots: int) -> bool:
    """Whether the sweep fits with another base run, and loses no kind of member by that."""
    try:
        run = run_from(scale.config.run, change)
    except ConfigError:
        return False
    changed = _Scale(scale.config.model_copy(update={"run": run}), scale.hardware)
    return len(changed.known) == len(scale.known) and changed.fits(hosts, slots)


def _narrower(domain: Domain, value: Scalar) -> Iterator[tuple[Domain, str]]:
    """The domain without its largest values, or without this one where values have no order."""
    if domain.values is None:
        form = "integers" if domain.integers else "log_integers"
        low, high = domain.integers or domain.log_integers or (0, 0)
        while (high := high // 2) >= max(1, low):
            yield domain.model_copy(update={form: (low, high)}), f"end {{key}} at {high}"
        return
    ordered = isinstance(value, int | float) and not isinstance(value, bool)
    left = tuple(each for each in domain.values if each != value)
    while left:
        gone = " and ".join(str(each) for each in domain.values if each not in left)
        yield domain.model_copy(update={"values": left}), f"leave {gone} out of {{key}}"
        if not ordered:
            return
        left = tuple(each for each in left if each != max(left, key=float))
