"""Recording into MLflow: how fast it is, what it costs a training step, and what an outage costs.

`sqlite-points`, `server-points`: metric values a second into a new SQLite file, and into a local MLflow
server on one, from a ledger through the recorder, against one `log_metric` call a value, as a training loop
without a recorder makes them. Imports and schemas are not counted. ratio = ours / peer: at least 20.
`server-rate` is the same rate of the server alone, in points a second: at least 5000.

`step-time`: seconds of a step of a real host (16 digits trials, batch 16, one thread) whose trials report
10 metrics each, every step, through Ray to the ledger and the recorder, against the same host that reports
only at the end. Driver and recorder have the machine's other cores. ratio = ours / peer: at most 1.01.
Real trials report every `train.eval_every` steps, so this is the worst case.

`outage`: points lost or doubled, counted through MLflow's client, after a sweep whose server was killed in
its middle and came back 60 s later. ratio = that count: at most 0.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from benchmarks._common import (
    Row,
    child_environment,
    finish,
    interleaved,
    is_quick,
    machine,
    median,
    say,
)
from replora.config import RunConfig
from replora.train.events import Event, Finished, Reported
from sweeps.config import SweepConfig
from sweeps.director import Director
from sweeps.host import Assignment, Host
from sweeps.ledger import Entry, Ledger, read_ledger
from sweeps.mlflow_recorder import MlflowRecorder, sync
from tests.sweeps.tracked import Server, rows_at, rows_due
from tests.waiting import free_port

TRIALS, METRICS = 16, 10


def start(trials: int) -> Iterator[Entry]:
    """The first lines of a sweep whose trials all run."""
    fields: dict[str, Any] = {"sweep": "0" * 16, "name": "tracking", "git": "", "versions": {}}
    yield Entry("sweep", None, fields | {"metric": "m0", "direction": "maximize"})
    for number in range(trials):
        config = RunConfig(seed=number).model_dump(mode="json")
        asked = {"number": number, "stage": "search", "config": config, "point": {}, "seed": number}
        yield Entry("asked", f"{number:016x}", asked)
        yield Entry("started", f"{number:016x}", {"host": "host-0", "attempt": 1})


def reports(trials: int, step: int) -> list[Entry]:
    metrics = {f"m{index}": step + index / 16 for index in range(METRICS)}
    return [
        Entry("reported", f"{number:016x}", {"step": step, "metrics": metrics}) for number in range(trials)
    ]


def recorded_rate(points: int, uri: str | None = None) -> float:
    """Points a second through the recorder: a sync of all points, the runs being there already."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Ledger.open(folder) as ledger:
            ledger.append_all(start(TRIALS))
            sync(folder, uri)
            for step in range(points // (TRIALS * METRICS)):
                ledger.append_all(reports(TRIALS, step))
        begin = time.perf_counter()
        done = sync(folder, uri)
        return done.points / (time.perf_counter() - begin)


def single_rate(points: int, uri: str | None = None) -> float:
    """Points a second by one synchronous call each."""
    from mlflow import MlflowClient

    with tempfile.TemporaryDirectory() as name:
        client = MlflowClient(uri or f"sqlite:///{name}/mlflow.db")
        run = client.create_run(client.create_experiment(f"single {time.time()}", f"file://{name}/a"))
        begin = time.perf_counter()
        for step in range(points):
            client.log_metric(run.info.run_id, f"m{step % METRICS}", step / 16, step=step // METRICS)
        return points / (time.perf_counter() - begin)


@contextmanager
def server() -> Iterator[Server]:
    """A local MLflow server on a new SQLite file."""
    with tempfile.TemporaryDirectory() as name:
        running = Server(Path(name), free_port())
        try:
            running.start()
            yield running
        finally:
            running.kill()


class TimedHost(Host):
    """A host that notes when each step begins, and whose trials may report at every step."""

    def __init__(self, slots: int, threads: int, device: str, *, chatty: bool, out: Path) -> None:
        super().__init__(slots, threads, device)
        self._chatty, self._out = chatty, out
        self._steps: dict[str, int] = {}
        self._moments: list[float] = []

    def admit(self, task: Assignment) -> str | None:
        """As a host does; the steps of this trial begin at 0."""
        self._steps[task.fingerprint] = 0
        return super().admit(task)

    def step(self) -> list[Event]:
        """As a host does, with 10 metrics of every trial after it."""
        if len(self.trials) == TRIALS:
            self._moments.append(time.perf_counter())
        events = super().step()
        if any(isinstance(event, Finished) for event in events):
            self._out.write_text(json.dumps(self._moments))
        more: list[Event] = []
        for trial in self.trials:
            self._steps[trial] += 1
            values = {f"m{index}": self._steps[trial] + index / 16 for index in range(METRICS - 1)}
            more.append(Reported(trial, self._steps[trial], {"accuracy": 0.5, **values}))
        return events + (more if self._chatty else [])


def step_seconds(steps: int, *, chatty: bool) -> float:
    """Median seconds of a step of a full host."""
    from sweeps.ray_backend.contract import HostPlan
    from sweeps.ray_backend.session import Session

    train = {"steps": steps, "eval_every": steps, "checkpoint_every": steps, "batch": 16}
    space = {"optim.lr": {"values": [1e-4 * (1 + number) for number in range(TRIALS)]}}
    document = {"name": "tracking", "run": {"train": train}, "space": space}
    config = SweepConfig.model_validate(document)
    with tempfile.TemporaryDirectory() as name, Session(hosts=1) as session:
        from sweeps.ray_backend.drive import drive

        folder, out = Path(name), Path(name) / "moments.json"
        first: dict[str, Any] = {"sweep": "0" * 16, "name": "tracking", "git": "", "versions": {}}
        first |= {"metric": "accuracy", "direction": "maximize", "config": config.model_dump(mode="json")}
        with Ledger.open(folder) as ledger:
            ledger.append("sweep", **first)
            recorder = MlflowRecorder(folder)
            recorder.start()
            plan = HostPlan(1, TRIALS, 1, folder)
            drive(Director(config, ledger), session, plan, factory=partial(TimedHost, chatty=chatty, out=out))
        if missing := recorder.close(300):
            raise RuntimeError(f"{missing} points are missing")
        said = sum(len(trial.reports) for trial in read_ledger(folder).trials.values())
        if said < TRIALS * (steps - 1 if chatty else 1):
            raise RuntimeError(f"the ledger has only {said} reports")
        moments = json.loads(out.read_text())
    return median([after - before for before, after in pairwise(moments)])


def outage(seconds: float, steps: int) -> tuple[int, int]:
    """Points lost or doubled by an outage in mid-sweep, and points that were due."""
    run = {"train": {"steps": steps, "batch": 4, "eval_every": max(1, steps // 50)}}
    rates = [1e-4 * (1 + number) for number in range(12)]
    with tempfile.TemporaryDirectory() as name, server() as running:
        folder = Path(name)
        document = {"name": "outage", "run": run, "space": {"optim.lr": {"values": rates}}}
        document |= {"tracking": {"uri": running.uri}, "resources": {"hosts": 1, "slots": 4, "threads": 1}}
        (folder / "sweep.yaml").write_text(yaml.safe_dump(document))
        command = [sys.executable, "-m", "replora", "sweep", "sweep.yaml", "--dir", "out"]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                command, cwd=folder, env=child_environment(1), stdout=log, stderr=subprocess.STDOUT
            )
        try:
            wait_for_first_trial(process, folder)
            running.kill()
            time.sleep(seconds)
            said = sum(trial.ended for trial in read_ledger(folder / "out").trials.values())
            say(f"outage: {said} of {len(rates)} trials had ended when the server came back")
            running.start()
            if process.wait(timeout=600):
                raise RuntimeError((folder / "log").read_text()[-2000:])
        finally:
            process.kill()
            process.wait()
        there, due = rows_at(running.uri), rows_due(folder / "out")
    return (there - due).total() + (due - there).total(), due.total()


def wait_for_first_trial(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Returns when one trial of the sweep has finished."""
    ledger = folder / "out/ledger.jsonl"
    while not (ledger.exists() and '"event":"finished"' in ledger.read_text()):
        if process.poll() is not None:
            raise RuntimeError(f"the sweep ended early:\n{(folder / 'log').read_text()[-2000:]}")
        time.sleep(0.1)


def main() -> None:
    quick = is_quick(__doc__)
    rounds, points, singles, steps = (1, 1_600, 50, 20) if quick else (3, 32_000, 500, 250)
    with server() as running:
        sides = {
            "sqlite": lambda: recorded_rate(points),
            "sqlite single": lambda: single_rate(singles),
            "server": lambda: recorded_rate(points, running.uri),
            "server single": lambda: single_rate(singles, running.uri),
        }
        rates = {name: median(values) for name, values in interleaved(sides, rounds).items()}
    times = interleaved(
        {name: partial(step_seconds, steps, chatty=name == "chatty") for name in ("chatty", "silent")},
        1 if quick else 5,
    )
    chatty, silent = median(times["chatty"]), median(times["silent"])
    wrong, due = outage(2.0, 40) if quick else outage(60.0, 4_000)
    device = machine()

    def rate(place: str) -> Row:
        ours, peer = rates[place], rates[f"{place} single"]
        return Row(f"{place}-points", ours, peer, "points/s", ours / peer, 20.0, device)

    finish(
        [
            rate("sqlite"),
            rate("server"),
            Row("server-rate", rates["server"], None, "points/s", rates["server"], 5_000.0, device),
            Row("step-time", chatty, silent, "s", chatty / silent, 1.01, device),
            Row("outage", float(wrong), float(due), "points", float(wrong), 0.0, device),
        ]
    )


if __name__ == "__main__":
    main()
