"""The members of a sweep that may take the most memory, found without building the others.

Memory never falls when a number of a run rises (ranks, widths, lengths, batches), so of the points that
agree in everything else only those count that no other valid one exceeds in every number.
"""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from replora.config import RunConfig
from replora.errors import ConfigError
from replora.load import run_from
from sweeps.config import Domain, Scalar, SweepConfig
from sweeps.probe import run_faults
from sweeps.space import Point, Space

__all__ = ["Member", "contenders"]

#: Fields, by section, that do not change what a run holds; nothing of `optim` does.
_WITHOUT_BYTES = {
    "train": ("steps", "eval_every", "checkpoint_every"),
    "method": ("alpha", "tau", "scale", "deviation", "zero_side"),
    "task": ("train_images", "val_items", "template", "loss_on", "mirror", "stride", "segments", "crops"),
}
#: Invalid points that are gone through below the largest values before a kind of run is given up (choice).
_MOST_INVALID = 1_000


@dataclass(frozen=True)
class Member:
    """A point of the space, in the keys that bear on memory, and its run."""

    point: Point
    run: RunConfig

    @property
    def words(self) -> str:
        """For a message."""
        return ", ".join(f"{key}={value}" for key, value in self.point.items()) or "the base run"


def contenders(config: SweepConfig) -> list[Member]:
    """The members among which the largest is, whatever the number of slots.

    A range counts with its bounds; conditions (`when`) are respected, and points that are no valid runs
    are passed over.
    """
    space = Space(config)
    named = {name for domain in space.domains.values() for name in domain.when}
    keys = [key for key in space.domains if key in named or not _is_without_bytes(key)]
    switches = [key for key in keys if key in named or not _is_number(space.domains[key])]
    found = []
    for point in _switched(space, switches, named):
        sizes = {
            key: _falling(space.domains[key])
            for key in keys
            if key not in switches and space.exists(key, point)
        }
        found += list(_largest(config.run, point, sizes))
    return found


def _is_without_bytes(key: str) -> bool:
    section, _, field = key.partition(".")
    return section == "optim" or field in _WITHOUT_BYTES.get(section, ())


def _is_number(domain: Domain) -> bool:
    values = domain.values or ()
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _switched(space: Space, switches: Sequence[str], named: set[str]) -> list[Point]:
    """Every combination of the keys whose values have no order, or on which others hang."""
    points: list[Point] = [{}]
    for key in switches:
        values = _branches(space, key, named)
        points = [
            below
            for point in points
            for below in ([{**point, key: v} for v in values] if space.exists(key, point) else [point])
        ]
    return points


def _branches(space: Space, key: str, named: set[str]) -> list[Scalar]:
    """All values of a key; of a range its bounds and what conditions name of it."""
    domain = space.domains[key]
    if domain.values is not None:
        return list(domain.values)
    bounds = _falling(domain)
    asked = [value for each in space.domains.values() for value in each.when.get(key, ())]
    return list(dict.fromkeys([bounds[0], bounds[-1], *(value for value in asked if key in named)]))


def _falling(domain: Domain) -> Sequence[Scalar]:
    """The values of a number, the largest first; of a range of floats its bounds."""
    if domain.values is not None:
        return sorted(dict.fromkeys(domain.values), key=float, reverse=True)
    whole = domain.integers or domain.log_integers
    if whole is not None:
        return range(whole[1], whole[0] - 1, -1)
    bounds = domain.uniform or domain.log_uniform
    assert bounds is not None
    return bounds[::-1]


def _largest(base: RunConfig, point: Point, sizes: Mapping[str, Sequence[Scalar]]) -> Iterator[Member]:
    """The valid points that none exceeds: from the largest values down, past what is no valid run."""
    start = (0,) * len(sizes)
    waiting, seen, valid = deque([start]), {start}, list[tuple[int, ...]]()
    while waiting and len(seen) < _MOST_INVALID:
        places = waiting.popleft()
        if any(all(map(operator.le, better, places)) for better in valid):
            continue
        numbers = {key: values[at] for (key, values), at in zip(sizes.items(), places, strict=True)}
        whole = {**point, **numbers}
        try:
            yield Member(whole, run_from(base, whole))
            valid.append(places)
            continue
        except ConfigError:
            blamed = _blamed(base, whole)
        for index, (key, values) in enumerate(sizes.items()):
            below = (*places[:index], places[index] + 1, *places[index + 1 :])
            if key.startswith(blamed) and below[index] < len(values) and below not in seen:
                seen.add(below)
                waiting.append(below)


def _blamed(base: RunConfig, point: Point) -> str:
    """The section in which an invalid point is at fault, with its dot; empty for all of them."""
    sections = [f"{fault.keys[0]}." for fault in run_faults(base, point) if fault.keys]
    return next((section for section in sections if any(key.startswith(section) for key in point)), "")
