"""The few statistics that a sweep's answer rests on. scipy, slow to import, only where t is needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

__all__ = ["LEVEL", "Difference", "Interval", "difference", "holm", "t_interval", "wilson"]

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A confidence interval; `basis` says in words what it covers and what it does not."""

    low: float
    high: float
    level: float
    basis: str


@dataclass(frozen=True)
class Difference:
    """How far the mean of one set of values is above that of another.

    Attributes:
        mean: Of the first less the second.
        error: Standard error of `mean`.
        freedom: Degrees of freedom.
        p: Two-sided, of no difference, before any correction.
        paired: Whether values of equal seeds were compared with each other.
    """

    mean: float
    error: float
    freedom: float
    p: float
    paired: bool

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Student's t interval of the difference."""
        half = _quantile(level, self.freedom) * self.error
        return self.mean - half, self.mean + half


def t_interval(values: Sequence[float], level: float = LEVEL, looks: int = 1) -> Interval:
    """Student's t interval of the mean of at least two values.

    Args:
        values: One for each seed.
        level: Its confidence.
        looks: How often somebody looked whether to go on; the interval then holds at all looks at once
            (Bonferroni), so it holds at the one where the looking ended.
    """
    half = _quantile(1 - (1 - level) / looks, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    mean = fmean(values)
    basis = f"Student's t over {len(values)} seeds" + (f", widened for {looks} looks" if looks > 1 else "")
    return Interval(mean - half, mean + half, level, basis)


def wilson(fraction: float, examples: int, level: float = LEVEL) -> Interval:
    """Wilson's interval of a fraction that was counted over `examples` independent examples [1].

    It covers which examples the validation split happens to hold, not the luck of the training's seed.

    References:
        [1] Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 1927.
    """
    z = NormalDist().inv_cdf(0.5 + level / 2)
    centre = (fraction + z**2 / (2 * examples)) / (1 + z**2 / examples)
    spread = math.sqrt(fraction * (1 - fraction) / examples + z**2 / (4 * examples**2))
    half = z * spread / (1 + z**2 / examples)
    basis = f"Wilson over {examples} validation examples, one seed"
    return Interval(max(0.0, centre - half), min(1.0, centre + half), level, basis)


def difference(one: dict[int, float], other: dict[int, float]) -> Difference | None:
    """The difference of two sets of values by seed: paired over common seeds, else by Welch's t test.

    None where no test is possible: fewer than two values on a side, or no spread at all.
    """
    common = sorted(one.keys() & other.keys())
    if len(common) >= 2:
        gaps = [one[seed] - other[seed] for seed in common]
        return _tested(fmean(gaps), stdev(gaps) / math.sqrt(len(gaps)), len(gaps) - 1, paired=True)
    if len(one) < 2 or len(other) < 2:
        return None
    parts = [stdev(values.values()) ** 2 / len(values) for values in (one, other)]
    if not sum(parts):
        return None
    shares = [part**2 / (len(values) - 1) for part, values in zip(parts, (one, other), strict=True)]
    mean = fmean(one.values()) - fmean(other.values())
    return _tested(mean, math.sqrt(sum(parts)), sum(parts) ** 2 / sum(shares), paired=False)


def holm(p_values: Sequence[float], alpha: float = 1 - LEVEL) -> list[tuple[bool, float]]:
    """For each p value whether it is rejected by Holm's procedure [1], and the level of a matching interval.

    An interval at that level leaves out 0 exactly where the difference is rejected.

    References:
        [1] Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scand. J. Statistics 1979.
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    result = [(False, 0.0)] * len(p_values)
    going, level = True, 1.0
    for rank, index in enumerate(order):
        if going:
            level = alpha / (len(p_values) - rank)
            going = p_values[index] < level
        result[index] = (going, 1 - level)
    return result


def _tested(mean: float, error: float, freedom: float, *, paired: bool) -> Difference | None:
    from scipy.stats import t

    if error <= 1e-9 * abs(mean):  # nothing but rounding
        return None
    return Difference(mean, error, freedom, float(2 * t.sf(abs(mean) / error, freedom)), paired)


def _quantile(level: float, freedom: float) -> float:
    from scipy.stats import t

    return float(t.ppf(0.5 + level / 2, freedom))
