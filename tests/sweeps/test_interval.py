from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from sweeps.interval import difference, holm, t_interval, wilson

ONE = {1: 0.90, 2: 0.92, 3: 0.91, 4: 0.95}
OTHER = {1: 0.88, 2: 0.91, 3: 0.90, 4: 0.91}


def test_the_t_interval_is_scipys() -> None:
    values = list(ONE.values())
    expected = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    found = t_interval(values)
    assert (found.low, found.high) == pytest.approx(expected)


def test_wilsons_interval_is_scipys() -> None:
    found = wilson(200 / 248, 248)
    expected = stats.binomtest(200, 248).proportion_ci(0.95, method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_wilsons_interval_of_an_extreme_has_a_width(fraction: float) -> None:
    found = wilson(fraction, 248)
    assert 0.0 <= found.low < found.high <= 1.0


def test_values_of_equal_seeds_are_paired() -> None:
    found = difference(ONE, OTHER)
    expected = stats.ttest_rel(list(ONE.values()), list(OTHER.values()))
    assert found is not None
    assert found.paired
    assert found.p == pytest.approx(expected.pvalue)
    assert found.interval() == pytest.approx(tuple(expected.confidence_interval()))


def test_only_common_seeds_are_paired() -> None:
    one, other = {**ONE, 9: 0.1}, {**OTHER, 8: 0.9}
    assert difference(one, other) == difference(ONE, OTHER)


def test_without_common_seeds_the_test_is_welchs() -> None:
    other = {seed + 10: value for seed, value in OTHER.items()}
    found = difference(ONE, other)
    expected = stats.ttest_ind(list(ONE.values()), list(OTHER.values()), equal_var=False)
    assert found is not None
    assert not found.paired
    assert found.p == pytest.approx(expected.pvalue)
    assert found.interval() == pytest.approx(tuple(expected.confidence_interval()))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({0: 0.9}, {0: 0.1}),
        ({1: 0.9, 2: 0.8}, {5: 0.1}),
        ({1: 0.9, 2: 0.8}, {1: 0.7, 2: 0.6}),
        ({1: 0.9, 2: 0.9}, {3: 0.7, 4: 0.7}),
        ({1: 0.3, 2: 0.7}, {1: 0.1, 2: 0.5}),
    ],
    ids=["one seed", "one seed on a side", "equal gaps", "no spread", "equal but for rounding"],
)
def test_no_test_is_possible(one: dict[int, float], other: dict[int, float]) -> None:
    assert difference(one, other) is None


def test_holm_rejects_step_by_step() -> None:
    rejected = [decision for decision, _ in holm([0.02, 0.001, 0.3, 0.013])]
    assert rejected == [True, True, False, True]


def test_holm_stops_at_the_first_that_is_not_rejected() -> None:
    # 0.03 is below 0.05, but 0.0251 did not pass 0.05 / 2 before it
    assert [decision for decision, _ in holm([0.03, 0.0251])] == [False, False]


def test_an_interval_at_holms_level_leaves_out_zero_exactly_where_it_rejects() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        best = dict(enumerate(rng.normal(1.0, 1.0, 5)))
        tests = [difference(best, dict(enumerate(rng.normal(0.0, 1.0, 5)))) for _ in range(4)]
        found = [test for test in tests if test is not None]
        for test, (rejected, level) in zip(found, holm([test.p for test in found]), strict=True):
            low, high = test.interval(level)
            assert rejected == (not low <= 0 <= high)


def test_the_intervals_cover_what_they_promise() -> None:
    rng = np.random.default_rng(0)
    hits = sum(
        found.low <= 0.0 <= found.high
        for found in (t_interval(list(rng.normal(size=5))) for _ in range(2000))
    )
    assert math.isclose(hits / 2000, 0.95, abs_tol=0.015)  # three standard errors
