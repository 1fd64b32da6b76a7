"""Activations computed again in the backward pass: a block keeps its input, and runs forward once more.

Every slot's dropout is drawn from its own generator; the second forward pass of a block draws the same
numbers as the first, because it starts from the same states.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from replora.models.base import Backbone, Target

__all__ = ["block_paths", "recomputed"]


def recomputed(backbone: Backbone) -> Backbone:
    """The backbone with each block of a module tree run again in the backward pass."""
    return replace(backbone, features=_RecomputedFeatures(backbone))


def block_paths(targets: Sequence[Target]) -> list[str]:
    """Dotted paths of the modules that hold all targets of a block each."""
    members: dict[int, list[list[str]]] = {}
    for target in targets:
        members.setdefault(target.block, []).append(target.module.split("."))
    paths = []
    for modules in members.values():
        shared = [parts[0] for parts in zip(*modules, strict=False) if len(set(parts)) == 1]
        paths.append(".".join(shared if len(shared) < len(modules[0]) else shared[:-1]))
    return list(dict.fromkeys(paths))


class _RecomputedFeatures:
    """Features of a module tree whose blocks are wrapped when it is first run."""

    def __init__(self, backbone: Backbone) -> None:
        self._features, self._paths = backbone.features, block_paths(backbone.targets)

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        if "_replora_recomputed" not in model.__dict__:
            model.__dict__["_replora_recomputed"] = True
            for path in self._paths:
                _wrap(model.get_submodule(path))
        return self._features(model, batch)


def _wrap(block: nn.Module) -> None:
    once: Any = block.forward

    def forward(*arguments: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return once(*arguments, **options)
        passes = _Passes(block, once, len(arguments), tuple(options))
        inputs = _with_gradient([*arguments, *options.values()])
        # Reentrant: the second pass has a graph of its own, whose hooks tell DeepSpeed when weights are read.
        return checkpoint(passes, *inputs, use_reentrant=True, preserve_rng_state=False)

    block.forward = forward


class _Passes:
    """The passes of one block: the second draws from the states that the first one found."""

    def __init__(self, block: nn.Module, once: Any, arguments: int, names: Sequence[str]) -> None:
        self._once, self._arguments, self._names = once, arguments, names
        found = (getattr(module, "dropout", None) for module in block.modules())
        self._generators = next((list(each) for each in found if isinstance(each, list | tuple)), [])
        self._states = [generator.get_state() for generator in self._generators]

    def __call__(self, *inputs: Any) -> Any:
        options = dict(zip(self._names, inputs[self._arguments :], strict=True))
        with _set_back(self._generators, self._states) if torch.is_grad_enabled() else nullcontext():
            return self._once(*inputs[: self._arguments], **options)


def _with_gradient(inputs: list[Any]) -> list[Any]:
    """The inputs, the first of them such that autograd comes back to the block whatever came before it."""
    tensors = [each for each in inputs if isinstance(each, Tensor)]
    if not any(each.requires_grad for each in tensors):
        first = next(index for index, each in enumerate(inputs) if isinstance(each, Tensor))
        inputs[first] = inputs[first].detach().requires_grad_()
    return inputs


@contextmanager
def _set_back(generators: Sequence[torch.Generator], states: Sequence[Tensor]) -> Iterator[None]:
    now = [generator.get_state() for generator in generators]
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state)
    try:
        yield
    finally:
        for generator, state in zip(generators, now, strict=True):
            generator.set_state(state)
