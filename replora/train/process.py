"""A process that trains: threads on purpose, memory that is kept instead of returned, and its end."""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import sys

__all__ = ["is_out_of_memory", "limit_memory", "prepare_process", "release_memory"]

#: Of mallopt(3), with values: large blocks from the heap up to glibc's own limit, the heap never
#: trimmed and grown in large steps, one heap for all threads (a thread's own is cut off at 64 MiB).
_MALLOPT = {
    "mmap_threshold": (-3, 32 << 20),
    "trim_threshold": (-1, 1 << 30),
    "top_pad": (-2, 64 << 20),
    "arena_max": (-8, 1),
}

#: Of torch's CPU allocator; of the kernel; of oneDNN, which does not say why it has no memory for a product
#: (seen at the limit of a process: its other causes would show in the first step of any trial).
_OUT_OF_MEMORY = ("can't allocate memory", "Cannot allocate memory", "could not create a primitive")


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


def release_memory() -> None:
    """Gives freed memory back, of the GPU and of the heap: compiled kernels, for one, need it elsewhere."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def limit_memory(limit_gib: float) -> None:
    """Lets this process run out of memory by itself, before the kernel ends it or a neighbour.

    Args:
        limit_gib: What it may allocate, beside what its libraries share with others.
    """
    limit = int(limit_gib * 2**30)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard < 0 else min(limit, hard), hard))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that host or GPU memory is used up."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(words in str(error) for words in _OUT_OF_MEMORY)
