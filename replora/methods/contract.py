"""What a pack asks of a method that is bound to a backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from replora.config import MethodConfig
from replora.methods.layout import Shapes
from replora.tasks.base import Batch

__all__ = ["Adaptation", "OwnTree"]


class Adaptation(Protocol):
    """What a pack needs of a method."""

    def shapes(self, method: MethodConfig) -> Shapes:
        """Names and shapes of one slot's trainable parameters, without the task head."""
        ...

    def initial(self, method: MethodConfig, generator: torch.Generator) -> dict[str, Tensor]:
        """One slot's parameters at the start."""
        ...

    def prepare(self, parameters: Mapping[str, Tensor], methods: Sequence[MethodConfig]) -> None:
        """Makes ready for the forward passes of one step: parameters `[K, *shape]` of K slots."""
        ...

    def features(self, batch: Batch) -> Tensor:
        """Features `[K, B, ...]` of a batch `[K, B, ...]`, with the parameters last prepared."""
        ...

    def settle(self) -> None:
        """After the step's last backward pass: carries gradients on into the parameters."""
        ...

    def drop_with(self, generators: Sequence[torch.Generator] | None) -> None:
        """Random streams of the slots for dropout in training; None turns dropout off."""
        ...


class OwnTree(Adaptation, Protocol):
    """An adaptation with a module tree of its own, into which something else may reach."""

    model: nn.Module
