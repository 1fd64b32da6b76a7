"""Picks ZeRO stage, micro-batch and K for a run on given hardware, or says what would have to change.

Order of preference (choice). Trials do not depend on each other and T is about one percent of P, so
one GPU for each trial comes first and sharding comes last; a smaller micro-batch costs no arithmetic
while a pass still fills the device; recomputation costs half as much again (6P instead of 4P a token).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from cluster.anatomy import Anatomy, anatomy_of
from cluster.hardware import Hardware
from cluster.memory import GIB, Memory, Offload, Setting, Stage, memory_of
from replora.check import engine_faults
from replora.config import EngineConfig, FullMethod, RunConfig
from replora.errors import PlanError

__all__ = ["Candidate", "Pins", "Plan", "count", "engine_of", "engine_words", "plan"]

#: Tokens of a pass beyond which more slots bring nothing. CPU: at 1,576 packing brought 0.94 to 0.98
#: (measured); GPU: choice, until a calibration says otherwise.
SATURATED = {"cpu": 1_576, "gpu": 4_096}
#: Tokens of a pass under which splitting a batch further leaves a GPU idle (choice).
IDLE_BELOW = 2_048
MAX_SLOTS = 8


@dataclass(frozen=True)
class Pins:
    """What a person has decided; None leaves it to the planner."""

    stage: Stage | None = None
    ranks: int | None = None
    micro_batch: int | None = None
    recompute: bool | None = None
    offload: Offload | None = None


@dataclass(frozen=True)
class Candidate:
    """A setting with its memory."""

    setting: Setting
    memory: Memory
    fits: bool

    @property
    def needed_gib(self) -> float:
        """On each GPU (or core), in GiB."""
        return self.memory.total / GIB

    def row(self) -> dict[str, Any]:
        """As a line of the planner's table."""
        setting = self.setting
        return {
            "zero": setting.stage,
            "gpus": setting.ranks,
            "offload": setting.offload,
            "recompute": setting.recompute,
            "micro_batch": setting.micro_batch,
            "slots": setting.slots,
            "gib": round(self.needed_gib, 1),
            "fits": self.fits,
        }


@dataclass(frozen=True)
class Plan:
    """How a run is laid out on a machine.

    Attributes:
        hardware: The machine.
        anatomy: The backbone.
        chosen: The first setting that fits, in order of preference.
        considered: One line for each way to save memory, at the asked micro-batch or else a smaller one.
        easier: A smaller `task.eval_batch` with the setting that it makes room for, where that comes before
            the chosen one in order of preference and trains no fewer trials at once.
    """

    hardware: Hardware
    anatomy: Anatomy
    chosen: Candidate
    considered: tuple[Candidate, ...]
    easier: tuple[int, Candidate] | None = None

    @property
    def trials_at_once(self) -> int:
        """Trials that the machine trains at the same time."""
        return self.trials_with(self.chosen)

    def trials_with(self, candidate: Candidate) -> int:
        """The same in another setting."""
        hosts = self.hardware.places // candidate.setting.ranks
        if not self.hardware.gpus:
            hosts = min(hosts, int(self.hardware.host_gib / candidate.needed_gib))
        return hosts * candidate.setting.slots


def plan(
    config: RunConfig,
    hardware: Hardware,
    slots: int | None = 1,
    *,
    tokens: int | None = None,
    pins: Pins = Pins(),
    anatomy: Anatomy | None = None,
) -> Plan:
    """The best setting that fits.

    Args:
        config: The run; `train.micro_batch` (or `train.batch`) is the largest micro-batch considered.
        hardware: The machine.
        slots: Trials of one pack; None takes as many as fill the device, at most 8.
        tokens: Of one example, where the backbone leaves it open.
        pins: What is decided already.
        anatomy: Sizes of the backbone; looked up by its name if None.

    Raises:
        PlanError: If nothing fits; the message says what would.
    """
    anatomy = anatomy or anatomy_of(config)
    search = _Search(config, hardware, anatomy, _tokens(anatomy, tokens))
    options = list(search.candidates(slots, pins))
    if not options:
        raise PlanError(_no_layout(search, slots, pins))
    chosen = next((option for option in options if option.fits), None)
    if chosen is None:
        raise PlanError(_refusal(search, options, slots, pins))
    found = Plan(hardware, anatomy, chosen, tuple(_distinct(options)))
    easier = _easier(search, chosen, slots, pins)
    if easier is None or found.trials_with(easier[1]) < found.trials_at_once:
        return found
    return replace(found, easier=easier)


@dataclass(frozen=True)
class _Search:
    """Everything that stays fixed while settings are tried."""

    config: RunConfig
    hardware: Hardware
    anatomy: Anatomy
    tokens: int

    def candidates(self, slots: int | None, pins: Pins) -> Iterator[Candidate]:
        """Settings that the engine takes, weighed, in order of preference."""
        for setting in self.settings(slots, pins):
            if not self.refused(setting):
                yield self._weighed(setting)

    def settings(self, slots: int | None, pins: Pins) -> Iterator[Setting]:
        """Settings in order of preference, whether the engine takes them or not."""
        for stage, ranks, offload in _ladder(self.hardware, pins):
            if _differs(pins.stage, stage) or _differs(pins.ranks, ranks) or _differs(pins.offload, offload):
                continue
            for micro, recompute in self._passes(ranks, pins):
                for count in self._slots(slots, micro):
                    yield Setting(micro, self.tokens, count, stage, ranks, recompute, offload)

    def refused(self, setting: Setting) -> list[str]:
        """Why the engine would not train the run like this (`replora.check` is the one that knows)."""
        train = self.config.train.model_copy(update={"micro_batch": setting.micro_batch})
        engine = EngineConfig.model_validate(engine_of(setting))
        run = self.config.model_copy(update={"train": train, "engine": engine})
        return [fault.text for fault in engine_faults(run)]

    def smaller_evaluations(self) -> Iterator[tuple[int, _Search]]:
        """The search with `task.eval_batch` halved again and again, where the task has one."""
        task = self.config.task
        size = getattr(task, "eval_batch", 1)
        while (size := size // 2) >= 1:
            smaller = task.model_copy(update={"eval_batch": size})
            yield size, replace(self, config=self.config.model_copy(update={"task": smaller}))

    def _weighed(self, setting: Setting) -> Candidate:
        hardware = self.hardware
        memory = memory_of(
            self.config, self.anatomy, setting, hardware.device, hardware.kept, hardware.trial_heap
        )
        on_host = self.hardware.host_gib * GIB / max(1, self.hardware.gpus)
        sharing = 1 if hardware.gpus else setting.ranks
        fits = memory.total * sharing <= hardware.place_gib * GIB and memory.host <= on_host
        return Candidate(setting, memory, fits)

    def _passes(self, ranks: int, pins: Pins) -> Iterator[tuple[int, bool]]:
        """Micro-batch and recomputation: first what keeps the device busy."""
        sizes = self._micro_batches(ranks, pins)
        busy = [size for size in sizes if size == sizes[0] or size * self.tokens >= IDLE_BELOW]
        idle = [size for size in sizes if size not in busy]
        for group in (busy, idle):
            for recompute in (False, True):
                if not _differs(pins.recompute, recompute):
                    yield from ((size, recompute) for size in group)

    def _micro_batches(self, ranks: int, pins: Pins) -> list[int]:
        batch = self.config.train.batch
        largest = min(self.config.train.micro_batch or batch, batch // ranks)
        sizes = [size for size in range(largest, 0, -1) if batch % (size * ranks) == 0]
        return [size for size in sizes if not _differs(pins.micro_batch, size)]

    def _slots(self, slots: int | None, micro: int) -> list[int]:
        if slots is not None:
            return [slots]
        enough = math.ceil(SATURATED[self.hardware.device] / (micro * self.tokens))
        return list(range(max(1, min(MAX_SLOTS, enough)), 0, -1))


def _easier(
    search: _Search, chosen: Candidate, slots: int | None, pins: Pins
) -> tuple[int, Candidate] | None:
    """The best setting with a smaller batch of evaluations, and the largest such batch."""
    if not chosen.memory.evaluation:
        return None
    order = list(search.settings(slots, pins))
    found = [
        (order.index(fitting.setting), -size, fitting)
        for size, other in search.smaller_evaluations()
        if (fitting := next((each for each in other.candidates(slots, pins) if each.fits), None))
    ]
    index, size, fitting = min(found, key=lambda each: each[:2], default=(len(order), 0, chosen))
    return (-size, fitting) if index < order.index(chosen.setting) else None


def _ladder(hardware: Hardware, pins: Pins) -> Iterator[tuple[Stage, int, Offload]]:
    """Stage, ranks and offload: first what leaves the most GPUs to other trials.

    ZeRO-1 and 2 never hold less than as many ranks without ZeRO (cluster.memory): they are for who asks.
    """
    if pins.stage is not None and pins.ranks is not None and pins.offload is not None:
        if pins.ranks <= hardware.places:
            yield pins.stage, pins.ranks, pins.offload
        return
    yield 0, 1, "none"
    gangs: list[int] = [2**power for power in range(1, 11) if 2**power <= hardware.gpus]
    stages: list[Stage] = [0, 3] if pins.stage in (None, 0, 3) else [pins.stage]
    yield from ((stage, gang, "none") for gang in gangs for stage in stages)
    if hardware.gpus:
        largest = gangs[-1] if gangs else 1
        yield from ((stage, largest, "optimizer") for stage in stages if stage)
        yield 3, largest, "base"


def _tokens(anatomy: Anatomy, asked: int | None) -> int:
    """Tokens of one example.

    Raises:
        PlanError: If neither the backbone nor the caller knows, or there would be none.
    """
    if asked is not None and anatomy.family != "llama" and asked != anatomy.tokens:
        raise PlanError(
            f"tokens must be {anatomy.tokens} for this backbone and task, but got {asked}.\n"
            "  Leave --tokens out."
        )
    if asked is not None and asked < 1:
        raise PlanError(f"tokens must be at least 1, but got {asked}.\n  Give --tokens N, the cutoff.")
    tokens = anatomy.tokens if asked is None else asked
    if tokens is None:
        raise PlanError(
            "the tokens of one example are not known from the run.\n  Give --tokens N, the cutoff."
        )
    return tokens


def engine_of(setting: Setting) -> dict[str, bool | int | str]:
    """The section `engine` of a run that is trained in a setting."""
    return {
        "ranks": setting.ranks,
        "zero": setting.stage,
        "offload": setting.offload,
        "recompute": setting.recompute,
    }


def _no_layout(search: _Search, slots: int | None, pins: Pins) -> str:
    hardware, batch = search.hardware, search.config.train.batch
    asked = ", ".join(f"{name} {value}" for name, value in vars(pins).items() if value is not None)
    refusals = [text for setting in search.settings(slots, pins) for text in search.refused(setting)]
    if refusals:
        return f"the engine does not train this run with {asked}: {' '.join(dict.fromkeys(refusals))}"
    return (
        f"no layout of {hardware.name} has {asked or 'such settings'} with train.batch {batch}."
        "\n  The micro-batch times the GPUs of a trial must divide train.batch; ZeRO needs 2, 4, ... GPUs "
        f"of the {hardware.gpus} there are; offloading the base needs stage 3 and all GPUs."
    )


def _refusal(search: _Search, options: list[Candidate], slots: int | None, pins: Pins) -> str:
    """What does not fit, and the smallest changes that would make it fit."""
    closest = min(options, key=lambda option: option.memory.total)
    place = "GPU" if search.hardware.gpus else "machine"
    parts = sorted(closest.memory.parts().items(), key=lambda part: -part[1])
    shown = ", ".join(f"{name} {value / GIB:.1f}" for name, value in parts[:4] if value)
    what = "one trial needs" if closest.setting.slots == 1 else f"a pack of {closest.setting.slots} needs"
    host = closest.memory.host / GIB
    beside = f" and {host:.1f} GiB of the host's memory beside each" if host else ""
    return (
        f"{what} {closest.needed_gib:.1f} GiB{beside} on a {place} with {search.hardware.place_gib:.1f} GiB "
        f"({shown}), in the smallest setting allowed.\n  {_remedies(search, slots, pins)}"
    )


def _remedies(search: _Search, slots: int | None, pins: Pins) -> str:
    """Single changes, each of which would do; the planner itself found each to fit."""
    found = []
    for name, freed in (
        ("micro-batch", replace(pins, micro_batch=None)),
        ("recomputation", replace(pins, recompute=None)),
        ("ZeRO stage and GPUs of a trial", replace(pins, stage=None, ranks=None, offload=None)),
    ):
        fitting = next((c for c in search.candidates(slots, freed) if c.fits), None)
        if freed != pins and fitting is not None:
            found.append(f"leave the {name} open ({_words(fitting.setting)})")
    for size, other in search.smaller_evaluations():
        if any(each.fits for each in other.candidates(slots, pins)):
            found.append(f"lower task.eval_batch to {size}")
            break
    if slots is not None and slots > 1:
        fitting = next(
            (c for k in range(slots - 1, 0, -1) for c in search.candidates(k, pins) if c.fits), None
        )
        if fitting is not None:
            found.append(f"lower the slots of the pack from {slots} to {fitting.setting.slots}")
    if found:
        return f"{found[0][0].upper()}{found[0][1:]}" + "".join(f", or {each}" for each in found[1:]) + "."
    lighter = "a method that trains less, " if isinstance(search.config.method, FullMethod) else ""
    return (
        "No single change on this hardware fits it. Use GPUs with more memory, shorten the sequences, "
        f"or take {lighter}a smaller backbone."
    )


def _words(setting: Setting) -> str:
    words = [f"micro-batch {setting.micro_batch}"]
    if setting.recompute:
        words.append("recomputed activations")
    if setting.stage or setting.ranks > 1:
        words.append(f"{engine_words(setting)} over {count(setting.ranks, 'GPU')}")
    if setting.offload != "none":
        words.append(f"{setting.offload} offloaded")
    return ", ".join(words)


def _distinct(options: list[Candidate]) -> Iterator[Candidate]:
    """For each way to save memory the first that fits, else the smallest that does not; in order."""
    ways: dict[tuple[object, ...], tuple[int, Candidate]] = {}
    for index, option in enumerate(options):
        setting = option.setting
        way = (setting.stage, setting.ranks, setting.offload, setting.recompute)
        best = ways.get(way)
        smaller = best is None or option.memory.total < best[1].memory.total
        if best is None or (not best[1].fits and (option.fits or smaller)):
            ways[way] = index, option
    yield from (option for _, option in sorted(ways.values(), key=lambda found: found[0]))


def engine_words(setting: Setting) -> str:
    """`no ZeRO`, `ZeRO-3`."""
    return f"ZeRO-{setting.stage}" if setting.stage else "no ZeRO"


def _differs(pin: object, value: object) -> bool:
    return pin is not None and pin != value


def count(number: int, what: str) -> str:
    """`1 GPU`, `2 GPUs`."""
    return f"1 {what}" if number == 1 else f"{number} {what}s"
