"""10,000 trials of one step each through the real driver: is the ten-thousandth as cheap as the first?

The digits ViT, RepLoRA of rank 2 and width 2, batch 4, one step and one evaluation a trial, random search;
Ray, ledger, MLflow, adapters and report as in any sweep. The driver is a process of its own, whose
processor time and resident memory are read every half second beside the number of finished trials.
The peer is plain Ray Tune with `reuse_actors=True` on LoRA trials of one step, without tracking.

Rows:
    flat           seconds per trial of the last thousand (ours) and of the second (peer); the first one holds
                   the start-up. ratio = ours / peer: at most 1.2
    driver-cpu     the same in seconds of the driver's processor time: at most 1.2
    driver-memory  MiB resident after the last trial (ours) and after the first thousand (peer).
                   ratio = ours / peer: at most 2.0
    vs-tune        seconds per trial between the 100th and the 500th result.
                   ratio = the peer's / ours: at least 1.5
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks._common import (
    Row,
    child_environment,
    cores,
    finish,
    is_quick,
    machine,
    run_cold,
    say,
)
from replora.config import LoraMethod, RunConfig


@dataclass(frozen=True)
class Sample:
    """The driver at one moment: finished trials, processor seconds, resident MiB, unix time."""

    trials: int
    cpu: float
    resident: float
    time: float


def sweep(trials: int) -> dict[str, Any]:
    """The sweep as a document."""
    method = {"name": "replora", "rank": 2, "hidden": 2}
    run = {"method": method, "train": {"steps": 1, "batch": 4}}
    return {
        "name": "scale",
        "run": run,
        "space": {"optim.lr": {"log_uniform": [1e-4, 1e-2]}},
        "search": {"name": "random", "trials": trials},
        "resources": {"hosts": cores(), "slots": 8, "threads": 1},
    }


def drive(trials: int) -> tuple[list[float], list[Sample]]:
    """Runs the sweep; when each trial finished (unix seconds, in order), and the driver's samples."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep(trials)))
        command = [sys.executable, "-m", "replora", "sweep", "sweep.yaml", "--dir", "out"]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                command, cwd=folder, env=child_environment(1), stdout=log, stderr=subprocess.STDOUT
            )
            try:
                finished, samples = watch(process, folder / "out/ledger.jsonl")
            finally:
                process.kill()
                process.wait()
        if process.returncode or len(finished) != trials:
            tail = (folder / "log").read_text()[-2000:]
            raise RuntimeError(f"{len(finished)} of {trials} trials finished:\n{tail}")
    return finished, samples


def watch(process: subprocess.Popen[bytes], ledger: Path) -> tuple[list[float], list[Sample]]:
    """Reads the ledger and the driver until it ends by itself."""
    driver = psutil.Process(process.pid)
    finished: list[float] = []
    samples: list[Sample] = []
    offset = 0
    while True:
        ended = process.poll() is not None
        if ledger.exists():
            with ledger.open("rb") as file:
                file.seek(offset)
                lines = file.read().splitlines(keepends=True)
            whole = [line for line in lines if line.endswith(b"\n")]
            offset += sum(map(len, whole))
            finished += [json.loads(line)["time"] for line in whole if b'"event":"finished"' in line]
        if ended:
            return finished, samples
        try:
            cpu = driver.cpu_times()
            resident = driver.memory_info().rss / 2**20
        except psutil.Error:
            continue  # it ended just now
        samples.append(Sample(len(finished), cpu.user + cpu.system, resident, time.time()))
        time.sleep(0.5)


def tune(trials: int) -> list[float]:
    """When each of the peer's trials reported (unix seconds, in order)."""
    method = LoraMethod(rank=2, alpha=2.0)
    base = RunConfig.model_validate(sweep(1)["run"])
    runs = [base.model_copy(update={"method": method, "seed": seed}) for seed in range(trials)]
    spec = {
        "runs": [run.model_dump(mode="json") for run in runs],
        "mode": "reuse",
        "cores": cores(),
        "metric": "accuracy",
    }
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "spec.json").write_text(json.dumps(spec))
        done = run_cold(["-m", "benchmarks._peers.tune_lora", "spec.json"], 1, Path(name))
    answer = json.loads(done.stdout.splitlines()[-1])
    if answer["errors"] or answer["trials"] != trials:
        raise RuntimeError(f"the peer's sweep went wrong: {answer}")
    return [float(moment) for moment in answer["reported"]]


def per_trial(moments: list[float], start: int, stop: int) -> float:
    """Mean seconds of a trial between two results."""
    return (moments[stop - 1] - moments[start]) / (stop - 1 - start)


def cpu_per_trial(samples: list[Sample], start: int, stop: int) -> float:
    """Mean processor seconds of a trial between two counts of finished trials."""
    first = next(sample for sample in samples if sample.trials >= start)
    last = next((sample for sample in samples if sample.trials >= stop), samples[-1])
    if last.trials == first.trials:
        raise RuntimeError(f"no two samples lie between {start} and {stop} trials")
    return (last.cpu - first.cpu) / (last.trials - first.trials)


def main() -> None:
    quick = is_quick(__doc__)
    trials, thousand, peers = (120, 40, 20) if quick else (10_000, 1_000, 500)
    finished, samples = drive(trials)
    for start in range(0, trials, thousand):
        window = samples_between(samples, start, start + thousand)
        seconds = per_trial(finished, start, start + thousand)
        resident = max(sample.resident for sample in window)
        say(f"to trial {start + thousand}: {seconds * 1e3:.1f} ms a trial, driver {resident:.0f} MiB")
    theirs = tune(peers)
    skip = peers // 5
    ours, peer = per_trial(finished, skip, peers), per_trial(theirs, skip, peers)
    last, second = (trials - thousand, trials), (thousand, 2 * thousand)
    pairs = {
        "flat": (per_trial(finished, *last), per_trial(finished, *second)),
        "driver-cpu": (cpu_per_trial(samples, *last), cpu_per_trial(samples, *second)),
        "driver-memory": (
            samples[-1].resident,
            max(sample.resident for sample in samples_between(samples, 0, thousand)),
        ),
    }
    units = {"flat": ("s per trial", 1.2), "driver-cpu": ("s per trial", 1.2), "driver-memory": ("MiB", 2.0)}
    rows = [
        Row(name, after, before, units[name][0], after / before, units[name][1], machine())
        for name, (after, before) in pairs.items()
    ]
    finish([*rows, Row("vs-tune", ours, peer, "s per trial", peer / ours, 1.5, machine())])


def samples_between(samples: list[Sample], start: int, stop: int) -> list[Sample]:
    """The samples with that many finished trials; the next one after them where there is none."""
    inside = [sample for sample in samples if start < sample.trials <= stop]
    return inside or [next((sample for sample in samples if sample.trials >= start), samples[-1])]


if __name__ == "__main__":
    main()
