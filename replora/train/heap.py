"""The heap of a process that trains: freed memory stays in it, and what it holds follows its tensors.

A step allocates and frees the same activations again and again. By default each goes back to the kernel,
which clears its pages for the next one. Two heaps keep freed memory:

    jemalloc   comes with Ray's wheel and serves a process that starts with it (`environment`). A free block
               is as large as the tensor that left it, so the next one of that size takes its place.
    glibc      serves every other process. Torch asks for addresses that are multiples of 64; glibc cuts them
               out of larger blocks and hands the cut-off pieces to whatever is small, so a hole that a tensor
               leaves is too small for the next one of its size, and the heap grows.

What each holds on top of the tensors, and what else was tried: docs/decisions/0012.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from pathlib import Path
from typing import Literal

__all__ = [
    "CONF",
    "Heap",
    "environment",
    "give_back",
    "heap_here",
    "heap_of_trials",
    "keep_freed",
    "start_again",
]

Heap = Literal["jemalloc", "glibc"]

#: jemalloc's options: blocks from 8 MiB up come from where all others do, and are kept like them. Its
#: `retain` must stay on: without it free neighbours are not joined, and the heap grows with every step.
CONF = "oversize_threshold:0"
#: jemalloc's name for "all arenas" and for "never" (known: its manual).
_ALL_ARENAS, _NEVER = 4096, -1
#: The page size that the library in Ray's wheel was built for; with another it refuses to start.
_PAGE = 4096

#: Of mallopt(3), with values: large blocks from the heap up to glibc's own limit, the heap never
#: trimmed and grown in large steps, one heap for all threads (a thread's own is cut off at 64 MiB).
_MALLOPT = {
    "mmap_threshold": (-3, 32 << 20),
    "trim_threshold": (-1, 1 << 30),
    "top_pad": (-2, 64 << 20),
    "arena_max": (-8, 1),
}


def environment() -> dict[str, str]:
    """What a process must start with for jemalloc to serve its memory; nothing where there is none.

    A heap that a person has preloaded stays.
    """
    library = _library()
    if library is None or "LD_PRELOAD" in os.environ:
        return {}
    return {"LD_PRELOAD": str(library), "MALLOC_CONF": os.environ.get("MALLOC_CONF", CONF)}


def start_again() -> None:
    """Starts this program again with `environment`, as the same process; call it before anything is done.

    Returns where nothing would change: without jemalloc, or where it serves already.
    """
    changes = environment()
    if changes and not _is_jemalloc():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **changes})


def heap_here() -> Heap:
    """The heap of this process."""
    return "jemalloc" if _is_jemalloc() else "glibc"


def heap_of_trials() -> Heap:
    """The heap of processes that are started on this machine to train."""
    return "jemalloc" if environment() else heap_here()


def keep_freed() -> None:
    """Keeps what is freed from now on in this process."""
    libc = ctypes.CDLL(None)
    if _is_jemalloc():
        for kind in ("dirty", "muzzy"):
            _set_time(libc, f"arenas.{kind}_decay_ms")  # of arenas to come
            for arena in range(_arenas(libc)):
                _set_time(libc, f"arena.{arena}.{kind}_decay_ms")
    elif hasattr(libc, "mallopt"):  # elsewhere than in glibc there are no such knobs
        for number, value in _MALLOPT.values():
            libc.mallopt(number, value)


def give_back() -> None:
    """Gives the kernel what is free now."""
    libc = ctypes.CDLL(None)
    if _is_jemalloc():
        libc.mallctl(f"arena.{_ALL_ARENAS}.purge".encode(), None, None, None, 0)
    elif hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def _library() -> Path | None:
    """The library of jemalloc as Ray's wheel brings it; Ray itself is not imported."""
    found = importlib.util.find_spec("ray")
    if sys.platform != "linux" or os.sysconf("SC_PAGE_SIZE") != _PAGE or not found or not found.origin:
        return None
    library = Path(found.origin).parent / "core" / "libjemalloc.so"
    return library if library.is_file() else None


def _is_jemalloc() -> bool:
    return hasattr(ctypes.CDLL(None), "mallctl")


def _arenas(libc: ctypes.CDLL) -> int:
    count, size = ctypes.c_uint(), ctypes.c_size_t(ctypes.sizeof(ctypes.c_uint))
    libc.mallctl(b"arenas.narenas", ctypes.byref(count), ctypes.byref(size), None, 0)
    return count.value


def _set_time(libc: ctypes.CDLL, name: str) -> None:
    """Sets one of jemalloc's times to never; an arena that is not in use yet refuses, and needs none."""
    never = ctypes.c_ssize_t(_NEVER)
    libc.mallctl(name.encode(), None, None, ctypes.byref(never), ctypes.c_size_t(ctypes.sizeof(never)))
