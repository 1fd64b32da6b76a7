"""The ranks of a run: processes that each do their share of every step and agree on all that follows.

A process is in at most one gang of ranks: torch's default process group. Without one it is a gang of one,
and nothing here costs anything. Every function is called by all ranks in the same order, except `index`,
`count` and `is_leader`, which only look.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import psutil
import torch
from torch import Tensor
from torch import distributed as dist
from torch._C._distributed_c10d import HashStore

from replora.errors import ConfigError, ReploraError, RunFailedError
from replora.train.process import is_out_of_memory

__all__ = [
    "agree",
    "check_count",
    "count",
    "from_leader",
    "gathered",
    "index",
    "is_leader",
    "is_lost_peer",
    "join",
    "join_alone",
    "join_launched",
    "total",
]

T = TypeVar("T")

#: A gang that waits for its next trial waits in a collective; a rank that dies is noticed at once, by the
#: connection that it closes, so the limit is only there because torch wants one (choice).
_PATIENCE = timedelta(days=30)


def join(rank: int, ranks: int, address: str) -> None:
    """Makes this process one of a gang; returns when all have joined.

    Args:
        rank: Of this process, from 0.
        ranks: Processes of the gang.
        address: `host:port` where rank 0 listens.
    """
    # DeepSpeed asks the environment, torchrun's way; a process sees one GPU, so it is the first on its node.
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks))
    os.environ.setdefault("LOCAL_RANK", "0")
    _choose_interface(address.rpartition(":")[0])
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(
        backend, init_method=f"tcp://{address}", rank=rank, world_size=ranks, timeout=_PATIENCE
    )


def _choose_interface(host: str) -> None:
    """Has gloo use the network that leads to rank 0, unless the environment names another.

    By itself it takes the address of this machine's name, which often is 127.0.1.1: ranks on different
    machines then wait for each other until their patience ends.
    """
    family, kind, _, _, place = socket.getaddrinfo(host.strip("[]"), 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(place)  # sends nothing: it only asks the routing table
        own = probe.getsockname()[0]
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == own for each in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def join_alone() -> None:
    """Makes this process a gang of one, for a library that wants one."""
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)


def join_launched() -> None:
    """Joins the gang that torchrun (or another launcher with its environment) started this process in."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        join(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), address)


def index() -> int:
    """This process's rank."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """Ranks of this process's gang."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_leader() -> bool:
    """Whether this rank writes files and speaks for the gang."""
    return index() == 0


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error only says that another rank is gone, so that the reason is to be found there."""
    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)


def check_count(wanted: int) -> None:
    """Refuses a run for another number of ranks than there are.

    Raises:
        ConfigError: With both numbers.
    """
    if count() != wanted:
        raise ConfigError(
            f"engine.ranks must be {count()}, the number of processes that train here, but got {wanted}.\n"
            "  `replora train` starts as many as engine.ranks by itself; under torchrun set both alike."
        )


def total(tensor: Tensor) -> Tensor:
    """The sum over the ranks, in place; the same bits on every rank."""
    if count() > 1:
        dist.all_reduce(tensor)
    return tensor


def gathered(tensor: Tensor, axis: int) -> Tensor:
    """The ranks' tensors, all of one shape, joined along an axis in the order of ranks."""
    if count() == 1:
        return tensor
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(count())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts, axis)


def from_leader(make: Callable[[], T]) -> T:
    """What `make` gives on rank 0, on every rank; what it raises there, it raises everywhere."""
    if count() == 1:
        return make()
    box: list[tuple[T | None, Exception | None]] = [(None, None)]
    if is_leader():
        box = [_tried(make)]
    dist.broadcast_object_list(box)
    made, error = box[0]
    if error is not None:
        raise error
    return made  # type: ignore[return-value]


def agree(do: Callable[[], T]) -> T:
    """What `do` gives on this rank, if it succeeds on all; else every rank raises the first one's error.

    `do` must not call anything of this module: a rank that failed would not answer.
    """
    if count() == 1:
        return do()
    made, error = _tried(do)
    errors: list[Exception | None] = [None] * count()
    dist.all_gather_object(errors, error)
    for each in errors:
        if each is not None:
            raise each
    return made  # type: ignore[return-value]


def _tried(make: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return make(), None
    except (ReploraError, OSError, MemoryError) as error:
        return None, error
    except Exception as error:  # noqa: BLE001 - raised on every rank; others may not survive pickling
        if is_out_of_memory(error):
            return None, MemoryError(str(error))
        return None, RunFailedError(f"{type(error).__name__}: {error}")
