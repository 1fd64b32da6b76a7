"""The layout follows measurements, which are taken once and remembered."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from replora.errors import MachineError, ReploraError
from replora.models.load import load_backbone
from replora.tasks.load import load_task
from replora.train.calibrate import pack_rates
from replora.train.events import Event
from replora.train.pack import Pack
from sweeps import calibration
from sweeps.calibration import calibrated_layout, remember_limits, remembered_layout, remembered_limits
from sweeps.config import SweepConfig
from sweeps.resources import Layout, layout_of
from sweeps.retries import Limits


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
    random = sweep(run={"backbone": {"weights": "random"}, "train": {"batch": 4}})  # no training beforehand
    first = calibrated_layout(random)
    assert [path.name.startswith("pack-rates-") for path in own_cache.glob("*.json")] == [True]
    monkeypatch.setattr(calibration, "_measure", lambda *_: pytest.fail("measured again"))
    assert calibrated_layout(random) == first == remembered_layout(random)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one for each measurement, none of which trains."""
    taken: list[int] = []

    def measure(*_: object) -> dict[int, float]:
        taken.append(1)
        return {1: 1.0, 12: 12.0}

    monkeypatch.setattr(calibration, "_measure", measure)
    return taken


def test_a_damaged_memory_is_measured_again(own_cache: Path, taken: list[int]) -> None:
    calibrated_layout(sweep())
    next(own_cache.glob("*.json")).write_text("{")
    calibrated_layout(sweep())
    assert len(taken) == 2


@pytest.mark.usefixtures("own_cache")
def test_other_training_code_is_measured_again(taken: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    calibrated_layout(sweep())
    monkeypatch.setattr(calibration, "code_hash", lambda: "other")
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


# --- what memory allowed ----------------------------------------------------------------------------


@pytest.mark.usefixtures("own_cache")
def test_limits_of_memory_are_remembered() -> None:
    limits = Limits(3, {"0123": 4})
    assert remembered_limits(sweep()) is None
    remember_limits(sweep(), limits)
    assert remembered_limits(sweep()) == limits
    assert remembered_limits(sweep(run={"train": {"batch": 8}})) is None


@pytest.mark.usefixtures("own_cache")
def test_slots_that_are_asked_for_are_tried_again() -> None:
    remember_limits(sweep(), Limits(3, {"0123": 4}))
    assert remembered_limits(sweep(resources={"slots": 8})) == Limits(None, {"0123": 4})


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"width": "x", "micro_batches": {}}', b"\xff"])
def test_a_damaged_memory_of_limits_counts_as_none(own_cache: Path, content: bytes) -> None:
    remember_limits(sweep(), Limits(3, {}))
    next(own_cache.glob("pack-memory-*.json")).write_bytes(content)
    assert remembered_limits(sweep()) is None


def test_a_sweep_without_limits_leaves_no_memory_of_them(own_cache: Path) -> None:
    remember_limits(sweep(), Limits(None, {}))
    assert list(own_cache.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("REPLORA_CACHE", str(tmp_path / "file"))
    with pytest.raises(MachineError, match=r"file: the cache folder cannot be written .*"):
        remember_limits(sweep(), Limits(3, {}))


def test_widths_that_memory_does_not_allow_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Pack.step

    def step(pack: Pack) -> list[Event]:
        if len(pack.trials) > 2:
            raise MemoryError("scripted")
        return original(pack)

    monkeypatch.setattr(Pack, "step", step)
    config = sweep(run={"backbone": {"weights": "random"}, "train": {"batch": 4}}).run
    backbone = load_backbone(config.backbone, precision="fp32", device="cpu")
    rates = pack_rates(config, backbone, load_task(config.task, precision="fp32", device="cpu"), 8).rates
    assert list(rates) == [1, 2, 4]
    assert rates[4] == 0.0
    assert layout_of(sweep(), rates).slots <= 2
