"""What autograd keeps from the forward to the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

__all__ = ["saved_bytes"]


def saved_bytes(step: Callable[[], object], frozen: Iterable[Tensor]) -> int:
    """Bytes of the storage that one step saves for its backward pass, each counted once.

    Parameters are left out, trained and frozen ones alike: they exist anyway.

    Args:
        step: One forward and backward pass.
        frozen: The base's weights, as this step uses them.
    """
    known = {tensor.untyped_storage().data_ptr() for tensor in frozen}
    alive: dict[int, Tensor] = {}  # keeps storages alive, so that no address is used twice

    def save(tensor: Tensor) -> Tensor:
        root = tensor if tensor._base is None else tensor._base
        address = tensor.untyped_storage().data_ptr()
        if address not in known and not (root.is_leaf and root.requires_grad):
            alive[address] = tensor.detach()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        step()
    return sum(tensor.untyped_storage().nbytes() for tensor in alive.values())
