"""Recording into MLflow: throughput against single calls, and what it costs a training step.

`points-per-second`: metric values a second into a new SQLite database, from a ledger through the
recorder, against one `log_metric` call a value, as a training loop without a recorder makes them.
Import and schema are not counted on either side. ratio = ours / peer, aim: at least 20.

`step-time`: seconds of a step whose 16 trials report 10 metrics each, every step, to a ledger that a
recorder follows, against the same step that reports nothing. The step is 120 small products in numpy
with one thread, under Python's lock as a pack's step is. ratio = ours / peer, aim: at most 1.10. Real
trials report every `train.eval_every` steps, so this is the worst case.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._common import Row, finish, interleaved, is_quick, machine, median, say
from replora.config import RunConfig
from sweeps.ledger import Entry, Ledger
from sweeps.mlflow_recorder import MlflowRecorder, sync

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


def recorded_rate(points: int) -> float:
    """Points a second through the recorder: a sync of all points less a sync of none."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Ledger.open(folder) as ledger:
            ledger.append_all(start(TRIALS))
            sync(folder)
            for step in range(points // (TRIALS * METRICS)):
                ledger.append_all(reports(TRIALS, step))
        begin = time.perf_counter()
        done = sync(folder)
        return done.points / (time.perf_counter() - begin)


def single_rate(points: int) -> float:
    """Points a second by one synchronous call each."""
    from mlflow import MlflowClient

    with tempfile.TemporaryDirectory() as name:
        client = MlflowClient(f"sqlite:///{name}/mlflow.db")
        run = client.create_run(client.create_experiment("single", f"file://{name}/a")).info.run_id
        begin = time.perf_counter()
        for step in range(points):
            client.log_metric(run, f"m{step % METRICS}", step / 16, step=step // METRICS)
        return points / (time.perf_counter() - begin)


def work(weights: np.ndarray) -> None:
    """One step's products."""
    state = weights[0]
    for weight in weights:
        state = np.tanh(state @ weight)


def step_seconds(steps: int, *, reported: bool, recorded: bool) -> float:
    """Mean seconds of a step that reports to the ledger or not, with a recorder behind it or not."""
    weights = np.random.default_rng(0).normal(0, 0.05, (120, 192, 192))
    with tempfile.TemporaryDirectory() as name, Ledger.open(Path(name)) as ledger:
        recorder = MlflowRecorder(Path(name))
        ledger.append_all(start(TRIALS))
        if recorded:
            sync(Path(name))  # import and schema are over before the steps begin
            recorder.start()
        seconds = []
        for step in range(steps):
            begin = time.perf_counter()
            work(weights)
            if reported:
                ledger.append_all(reports(TRIALS, step))
            seconds.append(time.perf_counter() - begin)
        if recorder.close(300):
            raise SystemExit("points are missing")
    return sum(seconds) / len(seconds)


def main() -> None:
    quick = is_quick(__doc__)
    rounds, points, singles, steps = (1, 1_600, 50, 40) if quick else (3, 32_000, 500, 300)
    rates = interleaved(
        {"recorder": lambda: recorded_rate(points), "single": lambda: single_rate(singles)}, rounds
    )
    ours, peer = median(rates["recorder"]), median(rates["single"])
    say(f"points a second: recorder {ours:,.0f}, single calls {peer:,.0f}")
    times = interleaved(
        {
            "recorded": lambda: step_seconds(steps, reported=True, recorded=True),
            "ledger": lambda: step_seconds(steps, reported=True, recorded=False),
            "silent": lambda: step_seconds(steps, reported=False, recorded=False),
        },
        rounds,
    )
    recorded, ledger, silent = (median(times[side]) for side in ("recorded", "ledger", "silent"))
    say(
        f"a step: recorded {recorded * 1e3:.2f} ms, ledger alone {ledger * 1e3:.2f} ms, "
        f"silent {silent * 1e3:.2f} ms"
    )
    finish(
        [
            Row("points-per-second", ours, peer, "points/s", ours / peer, 20.0, machine()),
            Row("step-time", recorded, silent, "s", recorded / silent, 1.10, machine()),
        ]
    )


if __name__ == "__main__":
    main()
