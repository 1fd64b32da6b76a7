"""The recorder on a real PostgreSQL, with the password where it belongs: in the environment."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from replora.errors import TrackingError
from sweeps.ledger import Ledger
from sweeps.mlflow_recorder import MlflowRecorder, check_reachable, sync
from sweeps.tracking import STATE_NAME
from tests.needs import missing
from tests.sweeps import tracked
from tests.sweeps.tracked import rows_at, rows_due, runs_at
from tests.waiting import PATIENCE_S, free_port

PASSWORD = "hunter2"
pytestmark = pytest.mark.slow


def programs() -> Path:
    """Folder of PostgreSQL's server programs."""
    if importlib.util.find_spec("psycopg") is None:
        missing("psycopg is not installed: pip install replora[postgres]")
    config = shutil.which("pg_config")
    if config is None:
        missing("PostgreSQL is not installed: apt-get install postgresql libpq-dev")
    done = subprocess.run([config, "--bindir"], capture_output=True, text=True, check=True)
    folder = Path(done.stdout.strip())
    if not (folder / "initdb").exists():
        missing(f"{folder} has no PostgreSQL server programs: apt-get install postgresql")
    return folder


def unprivileged() -> int | None:
    """PostgreSQL refuses to run as root; another user is free of that."""
    return 65534 if os.getuid() == 0 else None


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URI of an empty database on loopback, without the password that it wants."""
    binaries, user, port = programs(), unprivileged(), free_port()
    folder = Path(tempfile.mkdtemp(prefix="replora-postgres-"))
    (folder / "password").write_text(PASSWORD)
    if user is not None:
        for path in (folder, folder / "password"):
            os.chown(path, user, -1)

    def run(program: str, *arguments: str) -> None:
        command = [str(binaries / program), *arguments]
        subprocess.run(command, user=user, cwd=folder, check=True, capture_output=True)

    data = str(folder / "data")
    try:
        run("initdb", "-D", data, "-U", "me", "-A", "scram-sha-256", f"--pwfile={folder / 'password'}")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
        run("pg_ctl", "-D", data, "-w", "-l", str(folder / "log"), "-o", options, "start")
        try:
            monkeypatch.setenv("PGPASSWORD", PASSWORD)
            yield f"postgresql://me@127.0.0.1:{port}/postgres"
        finally:
            run("pg_ctl", "-D", data, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)


def test_a_sweep_is_recorded_once_and_synced_again(database: str, tmp_path: Path) -> None:
    check_reachable(database, PATIENCE_S)
    recorder = MlflowRecorder(tmp_path, database)
    with Ledger.open(tmp_path) as ledger:
        recorder.start()
        ledger.append_all(tracked.toy_sweep(3))
    assert recorder.close(PATIENCE_S) == 0
    assert rows_at(database) == rows_due(tmp_path)
    assert sync(tmp_path).uri == database
    assert rows_at(database) == rows_due(tmp_path)
    assert len(runs_at(database)) == 4
    assert PASSWORD not in (tmp_path / STATE_NAME).read_text()


def test_a_wrong_password_is_told_before_the_sweep(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "swordfish")
    with pytest.raises(TrackingError, match="password authentication failed") as caught:
        check_reachable(database, PATIENCE_S)
    assert "swordfish" not in str(caught.value)
