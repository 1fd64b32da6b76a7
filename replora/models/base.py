"""What the rest of the project knows of a backbone: named targets and features."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from replora.cache import Cached
from replora.models.prefix import Prefix
from replora.tasks.base import TextProcessor

__all__ = ["Architecture", "Backbone", "Beside", "Features", "Target", "are_shared", "held_whole"]


@dataclass(frozen=True)
class Target:
    """One linear map that an adapter can change: a whole `nn.Linear`, or a slice of its output rows.

    Attributes:
        name: Role in its block: `query`, `key`, `value`, `output`, `up`, `down`, ...
        block: Index of the attention block it belongs to, from 0.
        module: Dotted path of the `nn.Linear` inside the model.
        rows: First and one-past-last output row of the slice; `(0, out)` for a whole linear.
        inputs: Input features.
        heads: Attention heads that share the rows equally, one after the other; 0 where there are none.
    """

    name: str
    block: int
    module: str
    rows: tuple[int, int]
    inputs: int
    heads: int = 0

    @property
    def outputs(self) -> int:
        """Output features of the slice."""
        return self.rows[1] - self.rows[0]

    @property
    def key(self) -> str:
        """Unique name, for example `3.query`."""
        return f"{self.block}.{self.name}"


class Features(Protocol):
    """Features of a batch, as `Backbone.features` gives them."""

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """`[rows, width]` of a batch `[rows, ...]`."""
        ...

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Features:
        """The same for batches on a device and of a type."""
        ...


@dataclass(frozen=True)
class Architecture:
    """A model of images or clips that can be built.

    Attributes:
        build: The model without a head and with random weights; works on the meta device.
        features: How features are read from it.
        targets: Its adaptable targets, blocks in order.
        pretrained: Its named weights.
        attend: As `Backbone.attend`.
    """

    build: Callable[[], nn.Module]
    features: Features
    targets: Callable[[nn.Module], tuple[Target, ...]]
    pretrained: Callable[[], Cached]
    attend: Callable[[nn.Module, Mapping[str, Prefix]], None] | None = None


def are_shared(model: nn.Module) -> bool:
    """Whether ranks share the weights: all must then call its modules equally often, in generation too."""
    return hasattr(next(model.parameters()), "ds_id")


def held_whole(parameter: nn.Parameter) -> Tensor:
    """A weight that this process holds as a whole (`Backbone.whole`)."""
    return parameter.detach()


@dataclass(frozen=True)
class Beside:
    """What trains in full beside every method.

    Attributes:
        biases: Dotted paths of modules whose bias trains: linears and norms.
        modules: Dotted paths of small modules that train as a whole.
    """

    biases: tuple[str, ...]
    modules: tuple[str, ...]


@dataclass(frozen=True)
class Backbone:
    """A pre-trained model with its adaptable targets; its weights never change in place.

    Attributes:
        name: Configured name.
        model: The model, in evaluation mode, on its device; parameters do not require gradients.
        targets: Every adaptable target, blocks in order.
        features: `(model, batch) -> [rows, width]`: the features that a task head reads. It takes
            the model as an argument because a pack runs its own copy of the module tree on the
            same weights. A language model gives losses of tokens or generated tokens instead, which
            tasks without a head read (replora.models.language).
        width: Feature width.
        fingerprint: Hash of the weights (`sha256:` and the first 16 hex digits), for provenance and
            to refuse an adapter of another base.
        processor: The tokenizer of a language model; None for other models.
        attend: `(model, prefixes)`: makes every attention of a private module tree see the prefix that
            the mapping then holds under its dotted path; None where that is not possible.
        beside: What trains beside every method; None where nothing does.
        whole: Gives a weight of `model` to read outside of its module's own call. Where ranks share the
            weights, a weight is empty between calls, and every rank must ask for the same one.
    """

    name: str
    model: nn.Module
    targets: Sequence[Target]
    features: Callable[[nn.Module, Mapping[str, Tensor]], Tensor]
    width: int
    fingerprint: str
    processor: TextProcessor | None = None
    attend: Callable[[nn.Module, Mapping[str, Prefix]], None] | None = None
    beside: Beside | None = None
    whole: Callable[[nn.Parameter], Tensor] = held_whole
