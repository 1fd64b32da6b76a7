"""Each check tells a fit machine from one that is not, and says what to do."""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path

import pytest

from cluster.doctor import machine, network, software
from cluster.doctor.finding import Finding
from tests.waiting import PATIENCE_S, free_port


def test_this_environment_has_what_the_project_needs() -> None:
    assert software.check_python().state == "ok"
    assert software.check_packages().state == "ok"


def test_a_missing_package_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "requires", lambda _: ["nowhere-to-be-found>=1", "cmaes; extra == 'cma'"])
    found = software.check_packages()
    assert (found.state, found.text) == ("error", "nowhere-to-be-found is missing")


@pytest.mark.parametrize(
    ("requirement", "state"),
    [
        ("pydantic>=2.0,<3", "ok"),
        ("pydantic>=99", "error"),
        ("pydantic<2", "error"),
        ("pydantic<2.0.0.1", "error"),
    ],
)
def test_ranges_of_packages_are_checked(
    requirement: str, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "requires", lambda _: [requirement])
    assert software.check_packages().state == state


def test_a_version_that_is_not_the_pinned_one_is_doubtful(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pins = tmp_path / "constraints.txt"
    pins.write_text("pydantic==2.0.1\n")
    monkeypatch.setattr(software, "CONSTRAINTS", pins)
    found = software.check_packages()
    assert found.state == "warning"
    assert "tested: 2.0.1" in found.text


def driver(folder: Path, script: str) -> None:
    """A program named nvidia-smi."""
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


@pytest.mark.parametrize(
    ("script", "state", "text"),
    [
        ("echo 'NVIDIA H100, 81559 MiB, 570.1'", "ok", "NVIDIA H100, 81559 MiB, 570.1"),
        ("echo 'no devices'; exit 9", "error", "does not answer"),
    ],
)
def test_gpus_are_those_that_the_driver_lists(
    script: str, state: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver(tmp_path, script)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found = software.check_gpu()
    assert found.state == state
    assert text in found.text


def test_a_gpu_that_torch_does_not_see_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    driver(tmp_path, "echo 'NVIDIA H100, 81559 MiB, 570.1'")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert software.check_torch().state == "error"


@pytest.mark.parametrize(("free_kb", "state"), [(100, "error"), (1_000_000, "warning"), (9_000_000, "ok")])
def test_free_memory_is_judged(free_kb: int, state: str, tmp_path: Path) -> None:
    info = tmp_path / "meminfo"
    info.write_text(f"MemTotal: 16000000 kB\nMemAvailable: {free_kb} kB\n")
    assert machine.check_memory(info).state == state


@pytest.mark.parametrize(("threads", "state"), [("1", "ok"), ("4096", "warning"), ("many", "warning")])
def test_threads_beyond_the_cores_are_doubtful(
    threads: str, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    assert machine.check_cores().state == state


def test_a_folder_that_is_not_there_yet_can_be_made(tmp_path: Path) -> None:
    assert machine.check_folder("runs", tmp_path / "not" / "yet").state == "ok"
    assert not (tmp_path / "not").exists()


def test_a_folder_that_is_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = machine.check_folder("runs", tmp_path / "file")
    assert found.state == "error"
    assert "--dir" in found.remedy


def test_a_full_disk_is_to_be_emptied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", full)
    found = machine.check_folder("runs", tmp_path)
    assert (found.state, found.remedy) == ("error", "Free some space. Give another with --dir.")


def test_a_missing_shared_memory_is_doubtful(tmp_path: Path) -> None:
    assert machine.check_shared_memory(tmp_path / "shm").state == "warning"


@pytest.mark.parametrize(("seconds", "state"), [(0.0, "ok"), (60.0, "warning"), (-60.0, "warning")])
def test_a_clock_that_differs_from_the_file_servers_is_doubtful(
    seconds: float, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + seconds)
    assert machine.check_clock(tmp_path).state == state


@contextlib.contextmanager
def listening() -> Iterator[int]:
    """A port of the loopback interface on which somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield int(server.getsockname()[1])


def test_taken_ports_of_a_head_are_doubtful() -> None:
    with listening() as port:
        assert network.check_ports((port,)).state == "warning"
    assert network.check_ports((free_port(),)).state == "ok"


def test_a_ray_head_that_answers_is_told_from_one_that_does_not() -> None:
    with listening() as port:
        assert network.check_ray(f"127.0.0.1:{port}").state == "ok"
    assert network.check_ray("auto").state == "ok"
    assert network.check_ray(f"127.0.0.1:{free_port()}").state == "error"


def test_a_head_that_starts_late_is_waited_for() -> None:
    port = free_port()
    with socket.socket() as late:
        late.bind(("127.0.0.1", port))
        starter = threading.Timer(0.2, late.listen)
        starter.start()
        network.await_ray(f"127.0.0.1:{port}", wait_s=PATIENCE_S)
        starter.join()
        assert network.check_ray(f"127.0.0.1:{port}").state == "ok"


@pytest.mark.parametrize("address", ["head", "ray://head:10001", ":6379", "head:port"])
def test_an_address_of_another_form_is_an_error(address: str) -> None:
    network.await_ray(address, wait_s=1e9)  # nothing to wait for
    assert network.check_ray(address).state == "error"


@contextlib.contextmanager
def web_server(status: int) -> Iterator[int]:
    """A server whose health page has a status."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize(("status", "state"), [(200, "ok"), (401, "ok"), (500, "error")])
def test_mlflow_is_asked_for_its_health(status: int, state: str) -> None:
    with web_server(status) as port:
        assert network.check_mlflow(f"http://127.0.0.1:{port}").state == state


def test_a_password_in_a_uri_is_not_shown() -> None:
    found = network.check_mlflow(f"postgresql://me:secret@127.0.0.1:{free_port()}/db")
    assert found.state == "error"
    assert "secret" not in repr(found)


@pytest.mark.parametrize(
    ("uri", "state"), [("sqlite:////tmp/a.db", "ok"), ("ftp://host", "error"), ("host", "error")]
)
def test_other_stores_of_mlflow_are_judged_by_their_form(uri: str, state: str) -> None:
    assert network.check_mlflow(uri).state == state


def token_case(folder: Path, mode: int) -> dict[str, str]:
    """An environment with a token file of a mode."""
    path = folder / "token"
    path.write_text("0" * 32)
    path.chmod(mode)
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)}


@pytest.mark.parametrize(
    ("make", "state"),
    [
        (lambda folder: {}, "warning"),
        (lambda folder: {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0"}, "ok"),
        (lambda folder: {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": f"{folder}/none"}, "error"),
        (lambda folder: token_case(folder, 0o600), "ok"),
        (lambda folder: token_case(folder, 0o644), "error"),
    ],
    ids=["off", "environment", "no file", "own file", "open file"],
)
def test_tokens_are_there_and_private(
    make: Callable[[Path], dict[str, str]], state: str, tmp_path: Path
) -> None:
    assert network.check_token(make(tmp_path)).state == state


def test_every_finding_that_is_not_well_has_a_remedy(tmp_path: Path) -> None:
    findings: list[Finding] = [
        network.check_ray("x"),
        network.check_token({}),
        network.check_mlflow("x"),
        machine.check_shared_memory(tmp_path / "shm"),
    ]
    assert all(finding.state != "ok" and finding.remedy for finding in findings)


def test_the_token_is_looked_for_where_ray_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert f"{tmp_path}/.ray/auth_token" in network.check_token({"RAY_AUTH_MODE": "token"}).text
