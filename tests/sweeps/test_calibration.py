"""The layout follows measurements, which are taken once and remembered."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from replora.errors import ReploraError
from sweeps import calibration
from sweeps.calibration import calibrated_layout, remembered_layout
from sweeps.config import SweepConfig
from sweeps.resources import Layout, layout_of


def sweep(trials: int = 24, **changes: object) -> SweepConfig:
    """A random search of short runs over the learning rate."""
    search = {"name": "random", "trials": trials}
    space = {"optim.lr": {"log_uniform": [1e-4, 1e-2]}}
    run = {"train": {"batch": 4}}
    return SweepConfig.model_validate({"name": "s", "run": run, "space": space, "search": search, **changes})


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("REPLORA_CACHE", str(tmp_path))
    return tmp_path


def test_a_pack_that_does_not_pay_is_not_used() -> None:
    assert layout_of(sweep(), {1: 100.0, 2: 96.0, 4: 80.0}) == Layout(2, 1, 1)


def test_the_narrowest_of_the_fast_packs_is_used() -> None:
    assert layout_of(sweep(64), {1: 10.0, 2: 20.0, 4: 40.5, 8: 40.0, 16: 41.0}) == Layout(2, 4, 1)


def test_trials_are_spread_evenly_over_the_rounds() -> None:
    rates = {1: 10.0, 4: 20.0, 8: 40.0}
    assert layout_of(sweep(18), rates).slots == 5  # nine a host: five and four, not eight and one


def test_a_search_that_learns_keeps_most_trials_for_later() -> None:
    search = {"name": "optuna", "trials": 40}
    assert layout_of(sweep(search=search), {1: 1.0, 16: 16.0}).slots == 5


def test_hosts_follow_gpus_where_there_are_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,3,5")
    assert layout_of(sweep()).hosts == 3


def test_a_measurement_is_taken_once(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = calibrated_layout(sweep())
    assert [path.name.startswith("pack-rates-") for path in own_cache.glob("*.json")] == [True]
    monkeypatch.setattr(calibration, "_measure", lambda *_: pytest.fail("measured again"))
    assert calibrated_layout(sweep()) == first == remembered_layout(sweep())


def test_a_damaged_memory_is_measured_again(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    def measure(*_: object) -> dict[int, float]:
        taken.append(1)
        return {1: 1.0, 12: 12.0}

    monkeypatch.setattr(calibration, "_measure", measure)
    calibrated_layout(sweep())
    next(own_cache.glob("*.json")).write_text("{")
    calibrated_layout(sweep())
    assert len(taken) == 2


@pytest.mark.usefixtures("own_cache")
def test_a_measurement_that_fails_says_why() -> None:
    broken = sweep(run={"backbone": {"weights": "/no/such/file.safetensors"}})
    with pytest.raises(ReploraError, match="no/such/file"):
        calibrated_layout(broken)


@pytest.mark.parametrize("resources", [{"slots": 3}, {"address": "10.0.0.1:6379"}])
def test_nothing_is_measured_where_it_would_not_count(
    resources: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "_measure", lambda *_: pytest.fail("measured"))
    calibrated_layout(sweep(resources=resources))
