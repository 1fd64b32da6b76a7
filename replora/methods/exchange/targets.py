"""The linear layers that a PEFT configuration names, as this project's targets grouped into blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from replora.errors import ConfigError
from replora.models.base import Target
from replora.verbs import nearest

__all__ = ["check_names", "find_targets", "linear_names"]

#: Names of the equal row parts of a fused linear, by the linear's own name; None is left alone.
Fused = Mapping[str, Sequence[str | None]]


def find_targets(model: nn.Module, paths: Sequence[str], fused: Fused) -> list[Target]:
    """Targets of the linears at `paths`, blocks in the model's order.

    A block is what lies below the last number of a path (`model.layers.3.self_attn.q_proj`: block
    `model.layers.3`); where it has two layers of one name, as a decoder with cross attention, each parent
    module is a block of its own.

    Raises:
        ConfigError: If a path is no linear layer with floating-point weights, or `fused` does not divide it.
    """
    members: dict[str, list[str]] = {}
    for path in paths:
        members.setdefault(_block(path), []).append(path)
    blocks = [found for block in members.values() for found in _attention_blocks(block)]
    numbered = [(number, path) for number, block in enumerate(blocks) for path in block]
    return [target for number, path in numbered for target in _cut(model, path, number, fused)]


def check_names(model: nn.Module, names: Sequence[str]) -> None:
    """Refuses names of target modules that match no module.

    Raises:
        ConfigError: Listing every unknown name and the model's linear layers.
    """
    known = [path for path, _ in model.named_modules()]
    unknown = [name for name in names if not any(p == name or p.endswith(f".{name}") for p in known)]
    if unknown:
        linears = linear_names(model)
        raise ConfigError(
            f"target_modules must name layers of the model, but got {', '.join(map(repr, unknown))}.\n"
            f"  {nearest(unknown[0], linears)}Linear layers: {', '.join(linears)}."
        )


def linear_names(model: nn.Module) -> list[str]:
    """Own names of the model's linear layers, each once."""
    paths = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    paths = [path.removesuffix(".base_layer") for path in paths]
    return list(dict.fromkeys(path.rpartition(".")[2] for path in paths))


def _block(path: str) -> str:
    parents = path.split(".")[:-1]
    numbers = [position for position, part in enumerate(parents) if part.isdecimal()]
    return ".".join(parents[: numbers[-1] + 1]) if numbers else ""


def _attention_blocks(paths: Sequence[str]) -> list[list[str]]:
    """All of a block, or one list for each parent where a name occurs twice."""
    names = [path.rpartition(".")[2] for path in paths]
    if len(set(names)) == len(names):
        return [list(paths)]
    parents: dict[str, list[str]] = {}
    for path in paths:
        parents.setdefault(path.rpartition(".")[0], []).append(path)
    return list(parents.values())


def _cut(model: nn.Module, path: str, block: int, fused: Fused) -> list[Target]:
    linear = model.get_submodule(path)
    linear = getattr(linear, "base_layer", linear)
    name = path.rpartition(".")[2]
    if not isinstance(linear, nn.Linear) or not linear.weight.is_floating_point():
        raise ConfigError(
            f"target_modules must name linear layers with floating-point weights, but {path} is a "
            f"{type(linear).__name__}.\n  Linear layers: {', '.join(linear_names(model))}."
        )
    parts = fused.get(name, (name,))
    if linear.out_features % len(parts):
        raise ConfigError(
            f"fused: {path} has {linear.out_features} outputs, which are not {len(parts)} equal parts"
        )
    rows = linear.out_features // len(parts)
    heads = rows // (_head_width(model.get_submodule(path.rpartition(".")[0])) or rows + 1)
    return [
        Target(part, block, path, (index * rows, (index + 1) * rows), linear.in_features, heads)
        for index, part in enumerate(parts)
        if part is not None
    ]


def _head_width(parent: nn.Module) -> int:
    """Width of an attention's heads, under the names that transformers and timm have for it; 0 elsewhere."""
    for name in ("head_dim", "attention_head_size"):
        width = getattr(parent, name, 0)
        if isinstance(width, int) and width > 0:
            return width
    return 0
