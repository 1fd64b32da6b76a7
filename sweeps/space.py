"""The space of a sweep: which keys exist under which conditions, which values they take, all its points."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from sweeps.config import Domain, Scalar, SweepConfig

__all__ = ["Point", "Space", "value_at"]

Point = dict[str, Scalar]


def value_at(config: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key in plain data, or None where there is none."""
    value: Any = config
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value


class Space:
    """Domains by dotted key, in an order in which a key follows those that its `when` names.

    Args:
        config: The sweep; its space must have been checked (`sweeps.check`), or be free of cycles.
    """

    def __init__(self, config: SweepConfig) -> None:
        self.domains: dict[str, Domain] = {}
        self._base = config.run.model_dump(mode="json")
        waiting = dict(config.space)
        while waiting:
            ready = [key for key, domain in waiting.items() if not domain.when.keys() & waiting.keys()]
            if not ready:
                break
            self.domains |= {key: waiting.pop(key) for key in ready}
        self.cyclic = tuple(waiting)

    def exists(self, key: str, point: Mapping[str, Scalar]) -> bool:
        """Whether the key exists beside the values chosen so far (all that its `when` names)."""
        return all(self._value(name, point) in allowed for name, allowed in self.domains[key].when.items())

    def _value(self, name: str, point: Mapping[str, Scalar]) -> Any:
        if name in self.domains:
            return point.get(name)
        return value_at(self._base, name)

    def grid(self) -> Iterator[Point]:
        """Every point of a space of explicit values, in a fixed order: the last key varies fastest."""
        yield from self._expand(list(self.domains), {})

    def _expand(self, keys: list[str], point: Point) -> Iterator[Point]:
        if not keys:
            yield dict(point)
        elif not self.exists(keys[0], point):
            yield from self._expand(keys[1:], point)
        else:
            for value in self.domains[keys[0]].values or ():
                yield from self._expand(keys[1:], {**point, keys[0]: value})

    def draw(self, rng: np.random.Generator) -> Point:
        """A random point, each key after its own distribution."""
        point: Point = {}
        for key, domain in self.domains.items():
            if self.exists(key, point):
                point[key] = draw(domain, rng)
        return point


def draw(domain: Domain, rng: np.random.Generator) -> Scalar:
    """One value after the domain's distribution; both bounds can occur."""
    if domain.values is not None:
        return domain.values[int(rng.integers(len(domain.values)))]
    if domain.uniform is not None:
        return float(rng.uniform(*domain.uniform))
    if domain.log_uniform is not None:
        low, high = domain.log_uniform
        return float(min(max(math.exp(rng.uniform(math.log(low), math.log(high))), low), high))
    if domain.integers is not None:
        return int(rng.integers(domain.integers[0], domain.integers[1], endpoint=True))
    assert domain.log_integers is not None
    first, last = domain.log_integers
    exact = math.exp(rng.uniform(math.log(first - 0.5), math.log(last + 0.5)))
    return min(max(round(exact), first), last)
