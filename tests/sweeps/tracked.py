"""Small sweeps for the recorder, what MLflow must hold of them, and what it does hold."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from replora.config import RunConfig
from sweeps.ledger import Entry, read_lines
from tests.waiting import PATIENCE_S, wait_for

if TYPE_CHECKING:  # collecting these tests does not import mlflow
    from mlflow.entities import Run

# Trial, metric, step, time in ms, value: what MLflow keeps of a point.
Row = tuple[str, str, int, int, float]
FIRST = Entry(
    "sweep", None,
    {
        "sweep": "5eeb0f5ca1ab1e00", "name": "toy", "git": "0123abc", "metric": "accuracy",
        "direction": "maximize", "versions": {"torch": "2.14.1"},
        "config": {"name": "toy", "space": {"optim.lr": {"values": [0.1, 0.2]}}, "tracking": {"uri": None}},
    },
)  # fmt: skip


def trial(number: int, *, steps: int = 3, metrics: int = 2, end: str = "finished") -> Iterator[Entry]:
    """One trial; `end` is its last event, or empty for one that still runs."""
    name = f"{number:016x}"
    asked = {"number": number, "stage": "search", "point": {"optim.lr": 0.1}, "seed": number}
    yield Entry("asked", name, asked | {"config": RunConfig(seed=number).model_dump(mode="json")})
    yield Entry("started", name, {"host": "host-0", "attempt": 1})
    for step in range(1, steps + 1):
        yield report(number, step, metrics)
    last = {"step": steps, "objective": 0.5}
    if end == "finished":
        values = report(number, steps, metrics).fields["metrics"]
        yield Entry(end, name, last | {"metrics": values, "adapter": "", "seconds": 1.0})
    elif end == "pruned":
        yield Entry(end, name, last | {"reason": "worse than its rung"})
    elif end == "failed":
        yield Entry(end, name, {"step": steps, "kind": "diverged", "reason": "NaN", "final": True})


def report(number: int, step: int, metrics: int = 2) -> Entry:
    values = {f"metric {index}": number + step / 8 + index / 64 for index in range(metrics)}
    return Entry("reported", f"{number:016x}", {"step": step, "metrics": values})


def toy_sweep(trials: int, *, steps: int = 3, metrics: int = 2) -> Iterator[Entry]:
    """A whole sweep whose trials end in turn."""
    yield FIRST
    for number in range(trials):
        yield from trial(number, steps=steps, metrics=metrics)
    yield Entry("closed", None, {"state": "done"})


def rows_due(folder: Path) -> Counter[Row]:
    """What the ledger's lines say, read without the recorder's code."""
    rows: dict[tuple[str, str, int], Row] = {}
    for line in read_lines(folder):
        if line["event"] == "final":
            continue  # has a run of its own
        values = dict(line.get("metrics") or {})
        if line.get("objective") is not None:
            values["objective"] = line["objective"]
        for key, value in values.items():
            place = (line["trial"], key, line["step"])
            rows.setdefault(place, (*place, round(line["time"] * 1000), value))
    return Counter(rows.values())


def runs_at(uri: str, experiment: str = "replora") -> list[Run]:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    return list(client.search_runs([found.experiment_id], max_results=5000)) if found else []


def trials_at(uri: str) -> dict[str, Run]:
    """Runs of trials by fingerprint; two of one fingerprint fail."""
    runs = [run for run in runs_at(uri) if run.data.tags["kind"] == "trial"]
    found = {run.data.tags["fingerprint"]: run for run in runs}
    assert len(found) == len(runs)
    return found


def sweep_at(uri: str) -> Run:
    """The one run of a sweep."""
    (run,) = (run for run in runs_at(uri) if run.data.tags["kind"] == "sweep")
    return run


def rows_at(uri: str) -> Counter[Row]:
    """Every point that MLflow holds, with how often it does."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    return Counter(
        (trial, point.key, point.step, point.timestamp, point.value)
        for trial, run in trials_at(uri).items()
        for key in run.data.metrics
        for point in client.get_metric_history(run.info.run_id, key)
    )


@dataclass
class Server:
    """A real `mlflow server` on loopback with a process group of its own, on SQLite in `folder`."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port),
            "--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder}/server.db",
            "--artifacts-destination", f"{self.folder}/artifacts",
        ]  # fmt: skip
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_for(self._answers, "the server")

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "server.log").read_text()
        with suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=PATIENCE_S):
            return True
        return False
