"""This machine as a hardware profile: its GPUs as the driver tells, or its cores."""

from __future__ import annotations

import re

from cluster.doctor.software import gpus
from cluster.hardware import Figure, Hardware, load_hardware

__all__ = ["hardware_here"]

_MEMORY = re.compile(r", (\d+) MiB, ")
#: The driver counts memory that it keeps for itself: of a card's, torch sees about so much (recalled).
_USABLE = 0.97


def hardware_here(visible: int | None = None) -> Hardware:
    """The machine that this process runs on.

    Args:
        visible: GPUs that may be used; None for all that the driver tells.
    """
    found = [int(hit[1]) for row in gpus() or [] if (hit := _MEMORY.search(row))]
    count = len(found) if visible is None else min(visible, len(found))
    if not count:
        return load_hardware("cpu").model_copy(update={"name": "here"})
    memory = Figure(value=_USABLE * min(found) / 1024, mark="measured", source="nvidia-smi, less 3 %")
    return Hardware(name="here", summary="this machine", gpus=count, memory_gib=memory)
