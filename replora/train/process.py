"""Set-up of a process that trains: threads on purpose, and memory that is kept instead of returned."""

from __future__ import annotations

import ctypes
import os

__all__ = ["prepare_process"]

#: Of mallopt(3), with values: large blocks from the heap up to glibc's own limit, the heap never
#: trimmed and grown in large steps, one heap for all threads (a thread's own is cut off at 64 MiB).
_MALLOPT = {
    "mmap_threshold": (-3, 32 << 20),
    "trim_threshold": (-1, 1 << 30),
    "top_pad": (-2, 64 << 20),
    "arena_max": (-8, 1),
}


def prepare_process(threads: int | None = None) -> None:
    """Fixes torch's threads and keeps freed memory in the process; call it before training.

    A step allocates and frees the same activations again and again. By default glibc maps each large
    one anew and the kernel clears its pages; kept, a packed step on a CPU takes about a sixth less
    time (docs/log.md, 2026-11-24).

    Args:
        threads: CPU threads of this process; None leaves torch's default (every core).
    """
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # read by OpenMP when torch is first imported
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc only; elsewhere the allocator has no such knobs
        for number, value in _MALLOPT.values():
            libc.mallopt(number, value)
