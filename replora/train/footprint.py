"""Memory that this process holds: resident on a CPU (Linux), reserved by torch on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from replora.train.heap import heap_here

__all__ = ["peak_memory", "reset_peak"]

_PROCESS = Path("/proc/self")


def reset_peak(device: torch.device) -> None:
    """Sets the peak back to what is held now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif (_PROCESS / "clear_refs").exists():
        (_PROCESS / "clear_refs").write_text("5")


def peak_memory(device: torch.device) -> dict[str, Any] | None:
    """`device` (`cpu` or `gpu`), `heap` and the bytes `held` at most since `reset_peak`.

    None where none can tell.
    """
    if device.type == "cuda":
        return {"device": "gpu", "heap": heap_here(), "held": torch.cuda.max_memory_reserved(device)}
    if not (_PROCESS / "status").exists():
        return None
    lines = (_PROCESS / "status").read_text().splitlines()
    peak = next(line.split()[1] for line in lines if line.startswith("VmHWM"))
    return {"device": "cpu", "heap": heap_here(), "held": 1024 * int(peak)}
