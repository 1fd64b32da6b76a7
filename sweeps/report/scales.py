"""Where a value lies on an axis, and which values the axis names."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import quantiles
from typing import Literal

from sweeps.report.words import number

__all__ = ["SHADES", "Scale", "Shade", "is_number", "scale_of"]

SHADES = 16
# Share of a logarithmic axis that is kept for the value 0, which has no logarithm.
_ZERO = 0.1


def is_number(value: object) -> bool:
    """A finite int or float, and not a truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Scale:
    """An axis from 0 to 1.

    Attributes:
        kind: `ordinal` gives every value of `order` the same room.
        low: Smallest positive value of a logarithmic axis, smallest value of a linear one.
        high: Largest value.
        zero: A logarithmic axis with a place for 0 at its start.
    """

    kind: Literal["linear", "log", "ordinal"]
    low: float = 0.0
    high: float = 1.0
    zero: bool = False
    order: tuple[object, ...] = ()
    ticks: tuple[tuple[float, str], ...] = field(default=())

    def at(self, value: object) -> float:
        """Position of a value, from 0 to 1 where it lies on the axis."""
        if self.kind == "ordinal":
            return (self.order.index(value) + 0.5) / len(self.order)
        assert isinstance(value, int | float)
        if self.kind == "linear":
            return (value - self.low) / (self.high - self.low)
        start = _ZERO if self.zero else 0.0
        if value <= 0:
            return 0.0
        return start + (1 - start) * math.log(value / self.low) / math.log(self.high / self.low)


def scale_of(values: Iterable[object], *, ordinal_up_to: int = 0, log: bool | None = None) -> Scale:
    """The axis that suits some values.

    Words, and up to `ordinal_up_to` different numbers, get an ordinal axis; positive numbers over
    more than a factor of 20 a logarithmic one (unless `log` says), with a place for 0 if it occurs.
    """
    unique = list(dict.fromkeys(values))
    numbers = [float(value) for value in unique if isinstance(value, int | float) and is_number(value)]
    if len(numbers) < len(unique) or len(unique) <= ordinal_up_to or not unique:
        return _ordinal(unique, numbers)
    positive = [value for value in numbers if value > 0]
    spread = bool(positive) and max(positive) / min(positive) > 20
    if min(numbers) >= 0 and positive and (spread if log is None else log):
        return _logarithmic(min(positive), max(positive), zero=min(numbers) == 0)
    return _linear(min(numbers), max(numbers))


def _ordinal(unique: Sequence[object], numbers: Sequence[float]) -> Scale:
    order = tuple(sorted(numbers)) if len(numbers) == len(unique) else tuple(sorted(unique, key=str))
    ticks = tuple(((index + 0.5) / len(order), number(value)) for index, value in enumerate(order))
    return Scale("ordinal", order=order, ticks=ticks)


def _linear(low: float, high: float) -> Scale:
    if low == high:
        low, high = low - (abs(low) or 1.0) * 0.1, high + (abs(high) or 1.0) * 0.1
    step = _step((high - low) / 5)
    low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    count = round((high - low) / step)
    values = [low + index * step for index in range(count + 1)]
    return Scale(
        "linear", low, high, ticks=tuple(((v - low) / (high - low), _short(v, step)) for v in values)
    )


def _logarithmic(low: float, high: float, *, zero: bool) -> Scale:
    if low == high:
        low, high = low / 2, high * 2
    scale = Scale("log", low, high, zero)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ratio = high / low
    heads = (1, 2, 5) if ratio < 50 else (1, 3) if ratio < 2000 else (1,)
    values = [head * 10.0**power for power in decades for head in heads]
    inside = [value for value in values if low * 0.999 <= value <= high * 1.001]
    ticks = [(0.0, "0")] if zero else []
    ticks += [(scale.at(value), number(value)) for value in inside]
    return Scale("log", low, high, zero, ticks=tuple(ticks))


def _step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(head * power for head in (1, 2, 5, 10) if head * power >= rough * 0.999)


def _short(value: float, step: float) -> str:
    digits = max(0, -math.floor(math.log10(step)))
    return f"{value:.{digits}f}" if step >= 1e-4 and abs(value) < 1e5 else number(value)


@dataclass(frozen=True)
class Shade:
    """How good an objective is, as one of `SHADES` colours of the page; the last is the best.

    The worst twentieth of the values shares the first colour, so that a few failures of the search
    do not make all good trials look alike.
    """

    worst: float
    best: float

    @classmethod
    def of(cls, values: Sequence[float], direction: str) -> Shade:
        """The shades that fit some objectives, of which there must be one at least."""
        ordered = sorted(values, reverse=direction == "minimize")
        floor = quantiles(ordered, n=20)[0] if len(ordered) > 20 else ordered[0]
        return cls(floor, ordered[-1])

    def of_value(self, value: float) -> int:
        """Number of the colour, from 0 (worst) to `SHADES` - 1 (best)."""
        if self.worst == self.best:
            return SHADES - 1
        share = (value - self.worst) / (self.best - self.worst)
        return min(SHADES - 1, max(0, int(share * SHADES)))
