"""Fixtures of the sweep's tests: MLflow databases and servers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from sweeps.ledger import Ledger
from tests.sweeps.tracked import Server, toy_sweep
from tests.waiting import PATIENCE_S, free_port


@pytest.fixture(scope="session")
def mlflow_schema(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database, so that only one test pays for creating its tables."""
    from sweeps.mlflow_recorder import MlflowRecorder

    folder = tmp_path_factory.mktemp("schema")
    with Ledger.open(folder) as ledger:
        ledger.append_all(toy_sweep(0))
    recorder = MlflowRecorder(folder, experiment="schema")
    recorder.start()
    assert recorder.close(PATIENCE_S) == 0
    return folder / "mlflow.db"


@pytest.fixture
def sweep_folder(tmp_path: Path, mlflow_schema: Path) -> Path:
    """A new sweep's folder in which the database is there already, empty."""
    folder = tmp_path / "sweep"
    folder.mkdir()
    shutil.copy(mlflow_schema, folder / "mlflow.db")
    return folder


@pytest.fixture
def mlflow_server(tmp_path: Path, mlflow_schema: Path) -> Iterator[Server]:
    """A running server of this test alone; its whole process group ends with the test."""
    folder = tmp_path / "server"
    folder.mkdir()
    shutil.copy(mlflow_schema, folder / "server.db")
    server = Server(folder, free_port())
    try:
        server.start()
        yield server
    finally:
        server.kill()
