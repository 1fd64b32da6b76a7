"""Hardware profiles: how many GPUs a machine has and what each holds, every number with its origin."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from replora.errors import ConfigError
from replora.frozen import Frozen
from replora.load import load
from replora.train.heap import Heap, heap_of_trials
from replora.verbs import nearest

__all__ = ["Figure", "Hardware", "list_profiles", "load_hardware", "profile_names", "this_machine_gib"]

PROFILES = Path(__file__).parent / "profiles"
_GIB = 2**30


class Figure(Frozen):
    """A number with where it comes from.

    Attributes:
        value: The number, in the unit that its field names.
        mark: `known` from a named source, `measured`, `recalled` without a source at hand, or a `choice`.
        source: Where it stands, or how it was found.
    """

    value: Annotated[float, Field(ge=0)]
    mark: Literal["known", "measured", "recalled", "choice"]
    source: Annotated[str, Field(min_length=1)]


class Hardware(Frozen):
    """One machine, as the planner sees it.

    Attributes:
        name: Of the profile.
        summary: One line for `replora ls profiles`.
        gpus: Devices; 0 for a machine that trains on its CPU cores.
        memory_gib: Usable on each GPU; null on a CPU machine.
        host_memory_gib: Of the machine; null reads it from this machine.
        cores: CPU cores; null reads them from this machine.
        link_gb_s: Bandwidth between two GPUs, one direction, in 10^9 bytes per second.
        kept: Share of a pass's tensors that the allocator holds on top, from a calibration
            (cluster.calibration); null takes what is usual.
        heap: What serves the memory of trials on a CPU; null asks this machine.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,49}$")]
    summary: str
    gpus: Annotated[int, Field(ge=0)]
    memory_gib: Figure | None = None
    host_memory_gib: Figure | None = None
    cores: Annotated[int, Field(ge=1)] | None = None
    link_gb_s: Figure | None = None
    kept: Annotated[float, Field(ge=0)] | None = None
    heap: Heap | None = None

    @property
    def device(self) -> Literal["gpu", "cpu"]:
        """Where trials run."""
        return "gpu" if self.gpus else "cpu"

    @property
    def trial_heap(self) -> Heap:
        """What serves the memory of trials on a CPU."""
        return self.heap or heap_of_trials()

    @property
    def places(self) -> int:
        """Devices that can hold a base each: GPUs, or cores with a host each."""
        return self.gpus or self.cores or len(os.sched_getaffinity(0))

    @property
    def host_gib(self) -> float:
        """Memory of the machine, in GiB."""
        return this_machine_gib() if self.host_memory_gib is None else self.host_memory_gib.value

    @property
    def place_gib(self) -> float:
        """Memory that one place can have, in GiB; cores draw on the whole machine's."""
        if self.gpus and self.memory_gib is not None:
            return self.memory_gib.value
        return self.host_gib


def profile_names() -> list[str]:
    """Names of the profiles that come with the package."""
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


def load_hardware(name: str) -> Hardware:
    """A profile by its name, or from a person's own YAML file.

    Raises:
        ConfigError: If it is neither, or the file is wrong.
    """
    path = PROFILES / f"{name}.yaml" if name in profile_names() else Path(name)
    if not path.is_file():
        names = profile_names()
        raise ConfigError(
            f"{name} is neither a hardware profile nor a file.\n"
            f"  {nearest(name, names)}Profiles: {', '.join(names)}."
        )
    hardware = load(Hardware, path)
    if hardware.gpus and hardware.memory_gib is None:
        raise ConfigError(f"{path}: memory_gib is needed where there are GPUs, but is null.")
    return hardware


def list_profiles() -> list[dict[str, Any]]:
    """The rows of `replora ls profiles`."""
    profiles = (load_hardware(name) for name in profile_names())
    return [{"name": each.name, "summary": each.summary, "gpus": each.gpus} for each in profiles]


def this_machine_gib() -> float:
    """Physical memory, or the limit of this control group where that is lower."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(total, int(text)) / _GIB if text.isdigit() else total / _GIB
