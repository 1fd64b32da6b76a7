"""The recorder and a real `mlflow server` that dies, comes back, comes back empty, or hangs."""

from __future__ import annotations

import logging
import shutil
import socket
import threading
import time
from pathlib import Path

import pytest

from replora.errors import TrackingError
from sweeps.follower import Follower
from sweeps.ledger import LEDGER_NAME, Ledger
from sweeps.mlflow_recorder import MlflowRecorder, check_reachable, sync
from sweeps.tracking import Delivered
from tests.sweeps import tracked
from tests.sweeps.tracked import Server, rows_at, rows_due, runs_at, trials_at
from tests.waiting import PATIENCE_S, wait_for

SWEEP = list(tracked.toy_sweep(3, steps=30))


@pytest.fixture(autouse=True)
def failures(monkeypatch: pytest.MonkeyPatch) -> list[Exception]:
    """Why the follower's tries failed, so far; it looks at the ledger ten times as often as usual."""
    found: list[Exception] = []
    original = Follower._failed

    def failed(self: Follower, error: Exception) -> float:
        found.append(error)
        return original(self, error)

    monkeypatch.setattr(Follower, "_failed", failed)
    monkeypatch.setattr("sweeps.follower.POLL_S", 0.2)
    return found


@pytest.mark.slow
def test_an_outage_loses_and_doubles_no_point(
    mlflow_server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture, failures: list[Exception]
) -> None:
    folder = tmp_path / "sweep"
    check_reachable(mlflow_server.uri, PATIENCE_S)
    recorder = MlflowRecorder(folder, mlflow_server.uri)
    with Ledger.open(folder) as ledger, caplog.at_level(logging.WARNING):
        recorder.start()
        ledger.append_all(SWEEP[:40])
        wait_until_recorded(folder)
        mlflow_server.kill()
        ledger.append_all(SWEEP[40:70])
        wait_for(lambda: len(failures) > 1)
        mlflow_server.start()
        ledger.append_all(SWEEP[70:])
    assert recorder.close(PATIENCE_S) == 0
    assert rows_at(mlflow_server.uri) == rows_due(folder)
    assert {run.info.status for run in runs_at(mlflow_server.uri)} == {"FINISHED"}
    warnings = [row.getMessage() for row in caplog.records if row.name == "sweeps.follower"]
    assert len([said for said in warnings if "does not take records" in said]) == 1, warnings


@pytest.mark.slow
def test_a_server_that_comes_back_empty_gets_everything(
    mlflow_server: Server, mlflow_schema: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "sweep"
    recorder = MlflowRecorder(folder, mlflow_server.uri)
    with Ledger.open(folder) as ledger:
        recorder.start()
        ledger.append_all(SWEEP[:40])
        wait_until_recorded(folder)
        mlflow_server.kill()
        for file in mlflow_server.folder.glob("server.db*"):
            file.unlink()
        shutil.copy(mlflow_schema, mlflow_server.folder / "server.db")
        mlflow_server.start()
        ledger.append_all(SWEEP[40:])
    assert recorder.close(PATIENCE_S) == 0
    assert rows_at(mlflow_server.uri) == rows_due(folder)
    assert len(runs_at(mlflow_server.uri)) == 4


@pytest.mark.slow
def test_what_a_lost_server_missed_is_counted_and_synced(
    mlflow_server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow import MlflowClient

    folder = tmp_path / "sweep"
    recorder = MlflowRecorder(folder, mlflow_server.uri)
    with Ledger.open(folder) as ledger:
        recorder.start()
        ledger.append_all(SWEEP[:40])
        wait_until_recorded(folder)
        there = sum(rows_at(mlflow_server.uri).values())
        mlflow_server.kill()
        ledger.append_all(SWEEP[40:])
    begin = time.monotonic()
    assert recorder.close(1.0) == sum(rows_due(folder).values()) - there
    assert time.monotonic() - begin < 30  # MLflow itself would try for minutes
    assert f"replora sync {folder}" in caplog.text
    end_of("mlflow-recorder")
    with pytest.raises(TrackingError, match="cannot be used: Connection refused"):
        sync(folder)
    mlflow_server.start()
    result = sync(folder)
    assert (result.uri, result.refused) == (mlflow_server.uri, ())
    assert rows_at(mlflow_server.uri) == rows_due(folder)
    run = trials_at(mlflow_server.uri)[f"{0:016x}"].info.run_id
    files = MlflowClient(mlflow_server.uri).list_artifacts(run)
    assert [file.path for file in files] == ["config.yaml"]


def test_a_server_that_hangs_holds_up_neither_start_nor_close(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        recorder = MlflowRecorder(tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}")
        begin = time.monotonic()
        with Ledger.open(tmp_path) as ledger:
            recorder.start()
            ledger.append_all(SWEEP)
        assert recorder.close(0.5) == sum(rows_due(tmp_path).values())
        assert time.monotonic() - begin < 30
    end_of("mlflow-recorder")


def end_of(name: str) -> None:
    """Waits for a thread that outlived `close`, in a call that ends by itself soon."""
    for thread in threading.enumerate():
        if thread.name == name:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()


def wait_until_recorded(folder: Path) -> None:
    size = (folder / LEDGER_NAME).stat().st_size
    wait_for(lambda: (state := Delivered.load(folder)) is not None and state.offset >= size)
