"""What the driver's machine says of itself, and when."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

from sweeps.director import Director
from sweeps.ledger import Entry, Ledger
from sweeps.machine import MachineSampler, machine_values
from sweeps.mlflow_recorder import MlflowRecorder, sync
from tests.sweeps import simulated, tracked
from tests.sweeps.tracked import sweep_at, trials_at


def test_values_are_those_of_a_machine(tmp_path: Path) -> None:
    values = machine_values(str(tmp_path))
    assert 0 <= values["system_memory_usage_percentage"] <= 100
    assert 0 <= values["disk_usage_percentage"] <= 100
    assert values["system_memory_usage_megabytes"] > 10
    assert values["disk_available_megabytes"] >= 0
    assert 0 <= values["cpu_utilization_percentage"] <= 100


def test_samples_come_every_ten_seconds_at_most(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    moments = iter((100.0, 101.0, 109.9, 110.0, 110.2, 119.9, 131.0))
    monkeypatch.setattr("sweeps.machine.time", SimpleNamespace(monotonic=lambda: next(moments)))
    taken: list[Mapping[str, float]] = []
    sampler = MachineSampler(taken.append, str(tmp_path))
    counts = []
    for _ in range(6):
        sampler.update()
        counts.append(len(taken))
    assert counts == [0, 0, 1, 1, 1, 2]


def test_a_sample_changes_nothing_but_the_ledger(tmp_path: Path) -> None:
    director = simulated.run(tmp_path, simulated.grid())
    before = director.view.trials.copy()
    size = director.view.size
    with Ledger.open(tmp_path) as ledger:
        again = Director(simulated.grid(), ledger)
        again.sampled({"cpu_utilization_percentage": 50.0})
        assert (again.view.size, again.view.trials, again.done) == (size + 1, before, True)


def test_mlflow_shows_samples_and_data_once(tmp_path: Path) -> None:
    started = {"host": "host-0", "attempt": 1, "data": "sha256:0123456789abcdef"}
    with Ledger.open(tmp_path) as ledger:
        ledger.append_all([tracked.FIRST, *list(tracked.trial(0))[:1]])
        ledger.append_all([Entry("started", f"{0:016x}", started), *list(tracked.trial(0))[2:]])
        for percent in (10.0, 20.0):
            ledger.append("machine", values={"cpu_utilization_percentage": percent})
    uri = MlflowRecorder(tmp_path).uri
    for _ in range(2):
        sync(tmp_path)
        run = sweep_at(uri)
        points = history(uri, run.info.run_id, "system/cpu_utilization_percentage")
        assert points == [(0, 10.0), (1, 20.0)]
        for found in (run, trials_at(uri)[f"{0:016x}"]):
            assert found.inputs is not None
            (data,) = [given.dataset for given in found.inputs.dataset_inputs]
            assert (data.name, data.digest) == ("digits", "0123456789abcdef")


def history(uri: str, run: str, name: str) -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    return [(point.step, point.value) for point in MlflowClient(uri).get_metric_history(run, name)]
