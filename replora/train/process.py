"""A process that trains: threads on purpose, memory that is kept instead of returned, and its end."""

from __future__ import annotations

import gc
import os
import resource
import sys

from replora.train import heap

__all__ = ["is_out_of_memory", "limit_memory", "prepare_process", "release_memory"]

#: Of torch's CPU allocator; of the kernel; of oneDNN, which does not say why it has no memory for a product
#: (seen at the limit of a process: its other causes would show in the first step of any trial).
_OUT_OF_MEMORY = ("can't allocate memory", "Cannot allocate memory", "could not create a primitive")


def prepare_process(threads: int | None = None) -> None:
    """Fixes torch's threads and keeps freed memory in the process; call it before training.

    Kept (replora.train.heap), a packed step on a CPU takes about a sixth less time than with memory that
    the kernel clears anew for each tensor (docs/log.md, 2026-11-24).

    Args:
        threads: CPU threads of this process; None leaves torch's default (every core).
    """
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # read by OpenMP when torch is first imported
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    heap.keep_freed()


def release_memory() -> None:
    """Gives freed memory back, of the GPU and of the heap: compiled kernels, for one, need it elsewhere."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    heap.give_back()


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
