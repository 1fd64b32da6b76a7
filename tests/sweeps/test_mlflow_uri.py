"""Which tracking URIs are taken, and what is said of the others."""

from __future__ import annotations

import http.server
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from replora.errors import TrackingError
from sweeps.mlflow_recorder import MlflowRecorder, check_reachable
from sweeps.tracking import artifact_root, reason, resolve_uri, sqlite_file
from tests.waiting import free_port


def test_no_uri_means_sqlite_in_the_sweep(tmp_path: Path) -> None:
    assert resolve_uri(tmp_path, None) == f"sqlite:///{tmp_path}/mlflow.db"


def test_paths_do_not_depend_on_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_uri(Path("runs/toy"), None) == f"sqlite:///{tmp_path}/runs/toy/mlflow.db"
    assert resolve_uri(Path("runs/toy"), "sqlite:///all.db") == f"sqlite:///{tmp_path}/all.db"


def test_a_hash_in_a_folder_is_a_part_of_the_file(tmp_path: Path) -> None:
    """A name that ends at the `#` is another file, which other sweeps share."""
    uri = resolve_uri(tmp_path / "a#b", None)
    assert sqlite_file(uri) == tmp_path / "a#b" / "mlflow.db"
    assert resolve_uri(tmp_path, uri) == uri


@pytest.mark.parametrize("name", ["a?b", "a%20b"])
def test_a_folder_whose_database_mlflow_cannot_open_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="parts of its SQLite URI"):
        resolve_uri(tmp_path / name, None)


@pytest.mark.parametrize(
    "uri", ["http://127.0.0.1:5000", "https://user@tracking.example", "postgresql+psycopg://me@db/mlflow"]
)
def test_servers_are_taken_as_they_are(uri: str, tmp_path: Path) -> None:
    assert resolve_uri(tmp_path, uri) == uri


@pytest.mark.parametrize(
    "uri",
    [
        "https://user:hunter2@tracking.example",
        "postgresql://user:hunter2@db/mlflow",
        "postgresql://db/mlflow?user=me&password=hunter2",
        "https://user:#hunter2@tracking.example",
        "postgresql://user:a/hunter2@db/mlflow",
    ],
)
def test_a_password_is_refused_and_not_repeated(uri: str, tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="holds a password") as caught:
        MlflowRecorder(tmp_path, uri)
    assert "hunter2" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_uri_is_a_message(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="is no URI"):
        resolve_uri(tmp_path, "https://[me")


@pytest.mark.parametrize("uri", ["mlruns", "file:///tmp/mlruns", "ftp://host", "", "me:hunter2@host/x"])
def test_what_mlflow_cannot_record_to_is_refused(uri: str, tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="must be a database or a server") as caught:
        resolve_uri(tmp_path, uri)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite://host/x.db"])
def test_sqlite_needs_a_file(uri: str, tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="names no file"):
        resolve_uri(tmp_path, uri)


@pytest.mark.parametrize("uri", ["http:///path", "https://"])
def test_a_server_needs_a_host(uri: str, tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="names no host"):
        resolve_uri(tmp_path, uri)


def test_artifacts_lie_beside_the_database(tmp_path: Path) -> None:
    assert (
        artifact_root(tmp_path, f"sqlite:///{tmp_path}/db/all.db") == (tmp_path / "db/mlartifacts").as_uri()
    )
    assert artifact_root(tmp_path, "postgresql://db/mlflow") == (tmp_path / "mlartifacts").as_uri()
    assert artifact_root(tmp_path, "http://127.0.0.1:5000") is None


def test_a_new_database_needs_a_folder_to_write_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TrackingError, match="is not a folder that you can write to"):
        check_reachable(f"sqlite:///{tmp_path}/file/mlflow.db")
    check_reachable(f"sqlite:///{tmp_path}/new/mlflow.db")
    assert not (tmp_path / "new").exists()


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.db").write_text("not a database " * 100)
    with pytest.raises(TrackingError, match="file is not a database"):
        check_reachable(f"sqlite:///{tmp_path}/notes.db", timeout_s=60)


def test_a_deleted_experiment_is_refused(sweep_folder: Path) -> None:
    from mlflow import MlflowClient

    uri = resolve_uri(sweep_folder, None)
    client = MlflowClient(uri)
    client.delete_experiment(client.create_experiment("gone"))
    with pytest.raises(TrackingError, match="experiment 'gone' is deleted; restore it or set"):
        check_reachable(uri, 60, "gone")
    check_reachable(uri, 60, "another")


def test_nobody_listening_is_told_at_once() -> None:
    check_imports()
    begin = time.monotonic()
    with pytest.raises(TrackingError, match=r"cannot be used: Connection refused\.\n  Start it, or correct"):
        check_reachable(f"http://127.0.0.1:{free_port()}")
    assert time.monotonic() - begin < 30


def test_a_server_that_never_answers_is_given_up_in_time() -> None:
    check_imports()
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        begin = time.monotonic()
        with pytest.raises(TrackingError, match=r"no answer within 0\.5 s"):
            check_reachable(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.5)
        assert time.monotonic() - begin < 30


@pytest.fixture
def other_server() -> Iterator[str]:
    """A web server that is not MLflow's."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_another_web_server_is_refused(other_server: str) -> None:
    with pytest.raises(TrackingError, match="cannot be used"):
        check_reachable(other_server)


def check_imports() -> None:
    """Imports MLflow, which the time limits leave out."""
    import mlflow  # noqa: F401


def test_naming_a_recorder_does_not_import_mlflow(tmp_path: Path) -> None:
    code = (
        "import sys, json, pathlib; from sweeps.mlflow_recorder import MlflowRecorder, check_reachable;"
        f"recorder = MlflowRecorder(pathlib.Path({str(tmp_path)!r})); check_reachable(recorder.uri);"
        "print(json.dumps('mlflow' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) is False


@pytest.mark.parametrize(
    ("status", "variables", "words"),
    [
        (401, {}, "it asks who you are: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
        (401, {"USERNAME": "ada", "PASSWORD": "s3cret"}, "it refuses the user 'ada' with the password in"),
        (401, {"TOKEN": "s3cret"}, "it refuses the token in MLFLOW_TRACKING_TOKEN"),
        (403, {"USERNAME": "ada", "PASSWORD": "s3cret"}, "the user 'ada' may not write there"),
    ],
)
def test_a_server_that_lets_nobody_in_is_told_without_the_password(
    monkeypatch: pytest.MonkeyPatch, status: int, variables: dict[str, str], words: str
) -> None:
    for name in ("USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)
    said = f"API request to endpoint /api/2.0/mlflow/runs/create failed with error code {status} != 200."
    found = reason(RuntimeError(f"{said} Response body: 'You are not authenticated.'"))
    assert words in found
    assert "s3cret" not in found
