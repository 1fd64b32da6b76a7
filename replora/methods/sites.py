"""Which modules an adapter touches: targets grouped by module (sites) and by equal blocks (groups).

Blocks whose targets have the same shapes are stacked, so that the generators of all layers run as
one batched product instead of one small product per layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from replora.errors import ConfigError
from replora.models.base import Target

__all__ = ["Group", "Site", "group_targets", "select_targets"]


@dataclass(frozen=True)
class Site:
    """The adapted targets inside one linear, the same in every block of a group.

    Attributes:
        name: Names of its targets joined by `+`, for example `query+value` of a fused qkv.
        targets: Target names in row order.
        rows: Output rows of each target.
        inputs: Input features of the linear.
        modules: Dotted path of the linear in each block of the group.
        heads: Attention heads of each target, 0 where it has none.
    """

    name: str
    targets: tuple[str, ...]
    rows: tuple[tuple[int, int], ...]
    inputs: int
    modules: tuple[str, ...]
    heads: tuple[int, ...]

    @property
    def outputs(self) -> tuple[int, ...]:
        """Output features of each target."""
        return tuple(high - low for low, high in self.rows)


@dataclass(frozen=True)
class Group:
    """Blocks with equal sites; `name` is empty where all blocks of the backbone are alike."""

    name: str
    blocks: tuple[int, ...]
    sites: tuple[Site, ...]


def select_targets(targets: Sequence[Target], names: Iterable[str]) -> list[Target]:
    """The targets with these names, in the backbone's order.

    Raises:
        ConfigError: If a name is not a target of the backbone; the message lists those that are.
    """
    wanted = tuple(names)
    known = list(dict.fromkeys(target.name for target in targets))
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ConfigError(
            f"method.targets: {', '.join(unknown)} not in this backbone. Targets: {', '.join(known)}."
        )
    return [target for target in targets if target.name in wanted]


def group_targets(targets: Sequence[Target]) -> tuple[Group, ...]:
    """Stacks blocks with equal shapes: `[Target, ...]` in block order to groups of sites."""
    blocks: dict[int, list[Target]] = {}
    for target in targets:
        blocks.setdefault(target.block, []).append(target)
    shapes: dict[tuple[object, ...], list[int]] = {}
    for block, members in blocks.items():
        shapes.setdefault(_shape(members), []).append(block)
    several = len(shapes) > 1
    return tuple(
        Group(
            name=f"group{index}." if several else "",
            blocks=tuple(members),
            sites=tuple(_sites([blocks[block] for block in members])),
        )
        for index, members in enumerate(shapes.values())
    )


def _shape(members: Sequence[Target]) -> tuple[object, ...]:
    modules = list(dict.fromkeys(target.module for target in members))
    return tuple((t.name, t.rows, t.inputs, t.heads, modules.index(t.module)) for t in members)


def _sites(blocks: Sequence[Sequence[Target]]) -> Iterable[Site]:
    order = sorted(range(len(blocks[0])), key=lambda index: (blocks[0][index].module, blocks[0][index].rows))
    # One order for all: in BART's decoder other modules come first by name than in its encoder.
    first, *_ = ordered = [[block[index] for index in order] for block in blocks]
    position = 0
    for _, members in groupby(first, key=lambda target: target.module):
        run = list(members)
        yield Site(
            name="+".join(target.name for target in run),
            targets=tuple(target.name for target in run),
            rows=tuple(target.rows for target in run),
            inputs=run[0].inputs,
            modules=tuple(block[position].module for block in ordered),
            heads=tuple(target.heads for target in run),
        )
        position += len(run)
