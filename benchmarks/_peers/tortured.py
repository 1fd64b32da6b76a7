"""Plain Ray Tune under the same kills as a sweep of ours: `Tuner.restore` after a driver's death."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any, Literal

import psutil

from benchmarks._common import child_environment, cores
from replora.config import LoraMethod, RunConfig
from replora.load import run_from

__all__ = ["TorturedTune"]

PATIENCE_S = 300.0


class TorturedTune:
    """Runs `tune_torture` over a sweep's points as LoRA runs; use as a context manager."""

    def __init__(self, sweep: dict[str, Any], folder: Path) -> None:
        values = {key: domain["values"] for key, domain in sweep["space"].items()}
        base = RunConfig.model_validate(sweep["run"])
        points = [dict(zip(values, point, strict=True)) for point in product(*values.values())]
        runs = [run_from(base, point) for point in points]
        self._log = folder / "log.jsonl"
        self._log.touch()
        lora = [run.model_copy(update={"method": LoraMethod(rank=_rank(run))}) for run in runs]
        spec = {"runs": [run.model_dump(mode="json") for run in lora], "cores": cores()}
        self._spec = folder / "spec.json"
        self._spec.write_text(json.dumps({**spec, "folder": str(folder), "log": str(self._log)}))
        self._every, self._trials = base.train.checkpoint_every, len(runs)
        self._killed: Counter[str] = Counter()
        self._left: list[psutil.Process] = []
        self._output = (folder / "output").open("ab")
        self._process = self._start()

    def __enter__(self) -> TorturedTune:
        return self

    def __exit__(self, *error: object) -> None:
        self._end()
        self._output.close()

    def strike(self, victim: Literal["driver", "actor"], delay_s: float) -> None:
        """Waits for a new line of the log and kills; does nothing once the experiment has ended."""
        before, deadline = self._log.stat().st_size, time.monotonic() + PATIENCE_S
        while self._log.stat().st_size <= before and time.monotonic() < deadline:
            if self._process.poll() is not None:
                return
            time.sleep(0.05)
        time.sleep(delay_s)
        if victim == "driver":
            self._end()
            self._process = self._start()
        elif actors := [each for each in self._children() if _is_trial(each)]:
            sorted(actors, key=lambda each: each.pid)[self._killed.total() % len(actors)].kill()
        self._killed[victim] += 1

    def finish(self, timeout_s: float) -> dict[str, Any]:
        """Counts of the log once the experiment has ended."""
        status = self._process.wait(timeout=timeout_s)
        ended: set[int] = set()
        again: set[int] = set()
        known: Counter[int] = Counter()
        redone = 0
        for text in self._log.read_text().splitlines():
            line = json.loads(text)
            trial = line["trial"]
            if line["event"] == "start":
                again |= {trial} & ended
                redone += max(0, known[trial] - line["step"])
            elif line["event"] == "end":
                ended.add(trial)
            known[trial] = line["step"]
        counts = {"lost": self._trials - len(ended), "again": len(again), "redone_steps": redone}
        return {"kills": dict(self._killed), "status": status, **counts}

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "benchmarks._peers.tune_torture", str(self._spec)]
        return subprocess.Popen(command, env=child_environment(1), stdout=self._output, stderr=self._output)

    def _end(self) -> None:
        """Kills the driver and what it started: the next one needs the machine."""
        children = self._children()
        self._process.kill()
        self._process.wait()
        for process in children:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def _children(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            return list(psutil.Process(self._process.pid).children(recursive=True))
        return []


def _rank(run: RunConfig) -> int:
    return int(getattr(run.method, "rank", 8))


def _is_trial(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return bool(process.cmdline()) and "ImplicitFunc" in process.cmdline()[0]
    return False
