from __future__ import annotations

import numpy as np
import pytest

from sweeps.config import Domain, SweepConfig
from sweeps.space import Space, draw
from tests.sweeps.simulated import grid, sweep

CONDITIONAL = {
    "method.hidden": {"values": (8, 16), "when": {"method.name": ("replora",)}},
    "method.name": {"values": ("lora", "replora")},
    "optim.lr": {"values": (1e-3, 1e-2)},
}


def conditional() -> SweepConfig:
    return grid(space=CONDITIONAL)


def test_the_last_key_of_a_grid_varies_fastest() -> None:
    points = list(Space(grid()).grid())
    assert [point["optim.lr"] for point in points] == [1e-3, 1e-3, 1e-2, 1e-2, 1e-1, 1e-1]
    assert [point["optim.weight_decay"] for point in points] == [1e-4, 1e-2] * 3


def test_a_conditional_key_exists_only_under_its_condition() -> None:
    points = list(Space(conditional()).grid())
    assert len(points) == 2 + 2 * 2
    assert all(("method.hidden" in point) == (point["method.name"] == "replora") for point in points)


def test_a_condition_may_be_on_a_key_that_the_sweep_does_not_vary() -> None:
    space = {"method.hidden": {"values": (8, 16), "when": {"method.name": ("lora",)}}}
    assert list(Space(grid(space=space)).grid()) == [{}]


def test_a_key_hangs_on_a_key_that_does_not_exist() -> None:
    space = {
        "method.name": {"values": ("lora", "replora")},
        "method.hidden": {"values": (8, 16), "when": {"method.name": ("replora",)}},
        "method.rank": {"values": (2,), "when": {"method.hidden": (16,)}},
    }
    points = list(Space(grid(space=space)).grid())
    assert sum("method.rank" in point for point in points) == 1


@pytest.mark.parametrize(
    ("domain", "low", "high"),
    [
        ({"uniform": (2.0, 3.0)}, 2.0, 3.0),
        ({"log_uniform": (1e-4, 1e-1)}, 1e-4, 1e-1),
        ({"integers": (2, 4)}, 2, 4),
        ({"log_integers": (1, 64)}, 1, 64),
    ],
)
def test_draws_stay_within_their_bounds(domain: dict[str, object], low: float, high: float) -> None:
    rng = np.random.default_rng(0)
    values = [draw(Domain.model_validate(domain), rng) for _ in range(500)]
    assert all(isinstance(value, type(low)) and low <= value <= high for value in values)


@pytest.mark.parametrize("form", ["integers", "log_integers"])
def test_both_ends_of_an_integer_range_are_drawn(form: str) -> None:
    rng = np.random.default_rng(0)
    domain = Domain.model_validate({form: (2, 9)})
    assert {2, 9} <= {draw(domain, rng) for _ in range(300)}


def test_a_logarithmic_draw_spreads_over_decades() -> None:
    rng = np.random.default_rng(0)
    domain = Domain.model_validate({"log_uniform": (1e-4, 1.0)})
    values = [float(draw(domain, rng)) for _ in range(1000)]
    assert 0.2 < np.mean(np.array(values) < 1e-3) < 0.3  # one decade of four


def test_a_random_point_has_the_keys_that_exist_there() -> None:
    space = Space(sweep(space=CONDITIONAL))
    rng = np.random.default_rng(0)
    points = [space.draw(rng) for _ in range(50)]
    assert all(("method.hidden" in point) == (point["method.name"] == "replora") for point in points)
