"""How Ray starts and ends, and what it leaves behind; each fact in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

from replora.errors import MachineError
from tests.waiting import PATIENCE_S

ROOT = Path(__file__).parents[2]
PRELUDE = """
import json, os, signal, sys, threading, time
from pathlib import Path
from sweeps.ray_backend.contract import HostPlan
from sweeps.ray_backend.session import Session
from tests.sweeps.scripted import ScriptedDirector, ScriptedTrainer
"""


def start(code: str, folder: Path, **extra: str) -> subprocess.Popen[str]:
    home, temporary = folder / "home", folder / "tmp"
    home.mkdir(exist_ok=True)
    temporary.mkdir(exist_ok=True)
    hidden = {"RAY_AUTH_TOKEN", "RAY_AUTH_MODE", "RAY_ADDRESS"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"HOME": str(home), "PYTHONPATH": str(ROOT), **extra}
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(code)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=PATIENCE_S)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    return process.returncode, out, err


def test_a_sweep_leaves_nothing_but_its_own_folder(tmp_path: Path) -> None:
    code = """
        folder = Path("sweep"); folder.mkdir()
        director = ScriptedDirector(folder.absolute(), ["kill", "t-1"])
        with Session(hosts=1) as session:
            from sweeps.ray_backend.drive import drive
            scratch = session.scratch
            drive(director, session, HostPlan(1, 2, 1, folder.absolute()), None, ScriptedTrainer)
            import psutil
            own = {each.pid for each in (psutil.Process(), *psutil.Process().children(recursive=True))}
            every = psutil.net_connections("inet")
            ports = [port for port in every if port.pid in own and port.status == "LISTEN"]
        import ray
        listens = sorted({port.laddr.ip.removeprefix("::ffff:") for port in ports})
        print(json.dumps({"scratch": scratch.exists(), "ray": ray.is_initialized(), "done": director.done,
                          "listens": listens, "torch": "torch" in sys.modules}))
    """
    status, out, err = finish(start(code, tmp_path, RAY_ADDRESS="192.0.2.1:6379"))
    assert status == 0, err
    found = {"scratch": False, "ray": False, "done": True, "listens": ["127.0.0.1"], "torch": False}
    assert json.loads(out) == found
    assert err == ""
    assert [path.name for path in (tmp_path / "home").iterdir()] == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "sweep", "tmp"]


def test_ctrl_c_in_the_terminal_ends_the_sweep_with_checkpoints(tmp_path: Path) -> None:
    code = """
        folder = Path("sweep").absolute(); folder.mkdir()
        trials = ["endless-a", "endless-b"]
        director = ScriptedDirector(folder, trials)
        seen = []
        def go(event):
            if not seen and all(director.of(trial) for trial in trials):
                seen.append(1)
                print("running", flush=True)
        director.on_event = go
        with Session(hosts=2) as session:
            from sweeps.ray_backend import drive
            drive.STOP_TIMEOUT_S = 600
            try:
                drive.drive(director, session, HostPlan(2, 1, 1, folder), None, ScriptedTrainer)
            except KeyboardInterrupt:
                print(json.dumps([type(director.of(trial)[-1]).__name__ for trial in trials]))
    """
    process = start(code, tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "running\n"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: Ray's processes get it, too
    status, out, err = finish(process)
    assert status == 0, err
    assert json.loads(out) == ["Checkpointed", "Checkpointed"]


def test_a_running_cluster_is_used_and_left_running(tmp_path: Path) -> None:
    cluster = start(
        """
        with Session(hosts=2) as session:
            import ray
            print(ray.get_runtime_context().gcs_address, flush=True)
            while not Path("stop").exists():
                time.sleep(0.05)
            print(json.dumps(sorted({node["Alive"] for node in ray.nodes()})))
        """,
        tmp_path,
        RAY_AUTH_TOKEN="5" * 64,
    )
    try:
        assert cluster.stdout is not None
        address = cluster.stdout.readline().strip()
        guest = start(
            f"""
            from ray._private import services
            services.resolve_ip_for_localhost = lambda host: host  # this cluster listens on loopback alone
            folder = Path("sweep").absolute(); folder.mkdir()
            director = ScriptedDirector(folder, ["t-0", "t-1", "t-2"])
            with Session(hosts=2, address="{address}") as session:
                from sweeps.ray_backend.drive import drive
                drive(director, session, HostPlan(2, 1, 1, folder), None, ScriptedTrainer)
            print(json.dumps(director.hosts))
            """,
            tmp_path,
            RAY_AUTH_TOKEN="5" * 64,
            RAY_AUTH_MODE="token",
        )
        status, out, err = finish(guest)
        assert status == 0, err
        assert {host for hosts in json.loads(out).values() for host in hosts} == {"host-0", "host-1"}
    finally:
        (tmp_path / "stop").touch()
        status, out, err = finish(cluster)
    assert status == 0, err
    assert json.loads(out) == [True]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "Ray cannot be used on 127.0.0.1:1: .*refused"),
        ("head.example", "must be host:port of the cluster's head"),
        ("ray://127.0.0.1:10001", "must be host:port of the cluster's head"),
    ],
)
def test_a_cluster_that_cannot_be_reached_is_an_error_of_the_machine(address: str, message: str) -> None:
    from sweeps.ray_backend.session import Session

    with pytest.raises(MachineError, match=message):
        Session(hosts=1, address=address).__enter__()


def test_the_backend_imports_ray_only_when_it_runs(tmp_path: Path) -> None:
    code = "import sys, sweeps.ray_backend; print('ray' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["False", "False"]


def test_ctrl_c_while_ray_starts_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from sweeps.ray_backend import session

    def interrupted(self: session.Session) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(session.Session, "_start", interrupted)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(session, "_SOCKET", "")
    with pytest.raises(KeyboardInterrupt):
        session.Session(hosts=1).__enter__()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("installed", ["2.59.1", "2.61.0", "3.0.0"])
def test_an_untested_ray_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, installed: str) -> None:
    from sweeps.ray_backend import session

    monkeypatch.setattr(session, "version", lambda name: installed)
    with pytest.raises(MachineError, match=rf"Ray {installed} is installed.*tested with 2\.60\.\*"):
        session.check_version()


def test_a_patch_release_of_a_tested_ray_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    from sweeps.ray_backend import session

    monkeypatch.setattr(session, "version", lambda name: "2.60.7")
    session.check_version()


@pytest.mark.parametrize(("length", "used"), [(18, True), (19, False)])
def test_a_temporary_folder_is_used_if_rays_sockets_fit_there(
    monkeypatch: pytest.MonkeyPatch, length: int, used: bool
) -> None:
    from sweeps.ray_backend import session

    with tempfile.TemporaryDirectory(prefix="x" * (length - 5 - 8), dir="/tmp") as parent:
        assert len(parent) == length
        monkeypatch.setattr("tempfile.tempdir", parent)
        folder = session._private_folder()
        folder.remove()
        assert folder.path.parent == Path(parent if used else "/tmp")
