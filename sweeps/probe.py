"""Checks a space against RunConfig by building runs from it, before anything starts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from replora.check import misfits
from replora.config import RunConfig
from replora.load import data_below, run_from, valid_keys
from replora.models.shapes import shapes_of
from replora.reading.faults import Fault, shown
from replora.reading.overlay import nested, overlay, split_key
from replora.reading.validate import validate
from sweeps.config import Domain, Scalar, SweepConfig
from sweeps.objective import parameters_of
from sweeps.space import Point, Space

__all__ = ["fewest_parameters", "grid_faults", "value_faults"]

DRAWS = 16  # points that are tried before a value itself is blamed
MAX_SHOWN = 5  # points of a grid whose faults are told


def value_faults(config: SweepConfig) -> Iterator[Fault]:
    """Faults of single keys: unknown ones, and values that RunConfig does not take.

    Each key is tried with all its values, or both its bounds, wherever it exists.
    """
    space = Space(config)
    told: set[tuple[str, str]] = set()
    for base in _switched(space):
        for key in [key for key in space.domains if space.exists(key, base)]:
            for fault in _Probe(config.run, space, base, key).faults():
                if (key, fault.text) not in told:
                    told.add((key, fault.text))
                    yield Fault(("space", key), f"space.{key}: {fault.text}", fault.hint)


def grid_faults(config: SweepConfig) -> Iterator[Fault]:
    """Faults of whole points of a grid, whose values are fine one by one."""
    found = 0
    for point in Space(config).grid():
        faults = run_faults(config.run, point)
        if faults:
            found += 1
            said = " ".join(fault.text for fault in faults)
            if found <= MAX_SHOWN:
                where = ", ".join(f"{key}={shown(value)}" for key, value in point.items())
                yield Fault(("space",), f"the grid's point {where} is no valid run: {said}", _WHEN)
    if found > MAX_SHOWN:
        yield Fault(("space",), f"{found - MAX_SHOWN} more points of the grid are no valid runs.")


def fewest_parameters(config: SweepConfig) -> float:
    """The fewest parameters (without the head) that a point of the space trains; infinite if unknown.

    Key by key the value or bound with the fewest is taken, which finds the least where counts grow with
    each key, as those of every method do.
    """
    space = Space(config)
    return min(_fewest(config.run, space, base) for base in _switched(space))


def _fewest(run: RunConfig, space: Space, base: Point) -> float:
    point = dict(base)
    for key in [key for key in space.domains if key not in base and space.exists(key, base)]:
        tried = [{**point, key: value} for value in _values(space.domains[key])]
        point = min(tried, key=lambda each: _parameters(run, each))
    return _parameters(run, point)


def _parameters(run: RunConfig, point: Point) -> float:
    """Of the run at a point; infinite where it is no valid run or its shapes are unknown."""
    count = None if run_faults(run, point) else parameters_of(run_from(run, point))
    return math.inf if count is None else count


_WHEN = "Use `when` to leave out what does not go together, or random search, which passes over it."


def run_faults(base: RunConfig, point: Point) -> list[Fault]:
    """What is wrong with the run at a point, in the terms of RunConfig and of its backbone."""
    data: object = data_below(base, point)
    for key, value in sorted(point.items(), key=lambda item: not item[0].endswith("name")):
        data = overlay(RunConfig, data, nested(split_key(RunConfig, data, key), value))
    config, faults = validate(RunConfig, data)
    if config is None:
        return faults
    shape = shapes_of(config.backbone.name)
    return faults if shape is None else [*faults, *misfits(config, shape.targets)]


def _switched(space: Space) -> Iterable[Point]:
    """Every combination of the keys that conditions or methods hang on."""
    named = {name for domain in space.domains.values() for name in domain.when}
    switches = [key for key in space.domains if key in named or key.endswith(".name")]
    points: list[Point] = [{}]
    for key in switches:
        points = [below for point in points for below in _branches(space, key, point)]
    return points


def _branches(space: Space, key: str, point: Point) -> list[Point]:
    values = space.domains[key].values
    if values is None or not space.exists(key, point):
        return [point]
    return [{**point, key: value} for value in values]


@dataclass
class _Probe:
    """Tries the values of one key on top of a point of switches."""

    run: RunConfig
    space: Space
    base: Point
    key: str

    def faults(self) -> Iterator[Fault]:
        known = {fault.text for fault in run_faults(self.run, self.base)}
        for value in _values(self.space.domains[self.key]):
            found = run_faults(self.run, {**self.base, self.key: value})
            yield from (fault for fault in found if fault.text not in known and self._own(value, fault))
            if not found:
                yield from self._hidden(value)

    def _own(self, value: Scalar, fault: Fault) -> bool:
        """Whether the value is at fault whatever the other keys are (a micro-batch may fit another batch)."""
        rng = np.random.default_rng(0)
        for _ in range(DRAWS):
            drawn = self.space.draw(rng)
            point = {**drawn, **self.base, self.key: value}
            point = {key: given for key, given in point.items() if self.space.exists(key, point)}
            if all(found.keys != fault.keys for found in run_faults(self.run, point)):
                return False
        return True

    def _hidden(self, value: Scalar) -> Iterator[Fault]:
        """A field that fingerprints leave out, for example a folder."""
        keys = valid_keys(run_from(self.run, {**self.base, self.key: value}))
        if self.key not in keys:
            text = f"{self.key} cannot be varied: the names of trials do not show it."
            yield Fault((), text, f"Keys: {', '.join(keys)}.")


def _values(domain: Domain) -> tuple[Scalar, ...]:
    if domain.values is not None:
        return domain.values
    return domain.uniform or domain.log_uniform or domain.integers or domain.log_integers or ()
