"""A sweep under SIGKILLs of its driver, its hosts and its tracking server, and what became of it."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import psutil

from benchmarks._common import child_environment
from sweeps.ledger import LEDGER_NAME, SweepView, read_ledger, read_lines
from tests.sweeps.tracked import Server, rows_at, rows_due
from tests.waiting import PATIENCE_S

__all__ = ["Findings", "Kill", "TorturedSweep", "findings", "plan_kills", "table"]

#: How often each victim is drawn: hosts and drivers cost trained steps, the server does not.
WEIGHTS = {"driver": 7, "host": 9, "server": 4}
#: Share of a driver's deaths that hit it while it starts.
EARLY = 0.2


@dataclass(frozen=True)
class Kill:
    """One kill: whom, and how long after every host was seen to train again (`early`: after nothing)."""

    victim: Literal["driver", "host", "server"]
    delay_s: float
    early: bool


def plan_kills(seed: int, count: int, longest_s: float) -> list[Kill]:
    """Victims and delays, the same for the same seed."""
    draw = random.Random(seed)
    victims: list[Any] = draw.choices(list(WEIGHTS), list(WEIGHTS.values()), k=count)
    return [
        Kill(victim, draw.uniform(0.0, longest_s), victim == "driver" and draw.random() < EARLY)
        for victim in victims
    ]


class TorturedSweep:
    """Runs a sweep file by the command line, and kills what it is told to; use as a context manager.

    Args:
        file: Of the sweep.
        folder: For the sweep.
        server: MLflow's, which runs already.
    """

    def __init__(self, file: Path, folder: Path, server: Server) -> None:
        self.folder = folder
        self.snapshots: list[tuple[float, dict[str, int]]] = []
        self.killed: Counter[str] = Counter()
        self._server = server
        self._log: IO[bytes] = file.with_suffix(".log").open("ab")
        self._orphans: list[psutil.Process] = []
        self._file = file
        self._process = self._begin()

    def __enter__(self) -> TorturedSweep:
        return self

    def __exit__(self, *error: object) -> None:
        for process in [*self._children(), *self._orphans]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.kill()
        self._process.wait()
        self._log.close()

    def strike(self, kill: Kill) -> bool:
        """Waits for the sweep to train and kills; False if the sweep ended before."""
        if not (kill.early or self._trains()):
            return False
        time.sleep(kill.delay_s)
        if self._process.poll() is not None:
            return False
        getattr(self, f"_kill_{kill.victim}")()
        self.killed[kill.victim] += 1
        return True

    def finish(self, timeout_s: float) -> SweepView:
        """What the ledger says once the sweep has ended by itself."""
        if self._process.wait(timeout=timeout_s):
            raise RuntimeError(f"the sweep ended with status {self._process.returncode}: {self._log.name}")
        return read_ledger(self.folder)

    def _kill_driver(self) -> None:
        self._orphans = [each for each in self._orphans if each.is_running()] + self._children()
        self._process.kill()
        self._process.wait()
        self._remember()
        begun = _has_begun(self.folder)
        self._process = self._start("resume", str(self.folder)) if begun else self._begin()

    def _kill_host(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not (hosts := [each for each in self._children() if _is_host(each)]):
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise RuntimeError(f"no host to kill: {self._log.name}")
            time.sleep(0.05)
        sorted(hosts, key=lambda each: each.pid)[len(self.snapshots) % len(hosts)].kill()
        self._remember()

    def _kill_server(self) -> None:
        self._server.kill()
        self._server.start()

    def _begin(self) -> subprocess.Popen[bytes]:
        return self._start("sweep", str(self._file), "--dir", str(self.folder))

    def _start(self, *words: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "replora", *words]
        return subprocess.Popen(command, env=child_environment(1), stdout=self._log, stderr=self._log)

    def _children(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            return list(psutil.Process(self._process.pid).children(recursive=True))
        return []

    def _trains(self) -> bool:
        """Waits until every host that has trials got further with one; False if the sweep ends."""
        before, deadline = _steps(self.folder), time.monotonic() + PATIENCE_S
        while True:
            if self._process.poll() is not None:
                return False
            if time.monotonic() > deadline:
                raise RuntimeError(f"a host trained nothing for {PATIENCE_S:.0f} s: {self._log.name}")
            now = _steps(self.folder)
            further = {host for trial, (host, step) in now.items() if step > before.get(trial, ("", 0))[1]}
            if now and further == {host for host, _ in now.values()}:
                return True
            time.sleep(0.3)

    def _remember(self) -> None:
        """Notes the newest checkpoint of every trial, at the moment of a kill."""
        found = {}
        for folder in self.folder.glob("trials/*/checkpoints"):
            steps = [int(path.stem.removeprefix("step-")) for path in folder.glob("step-*.safetensors")]
            found[folder.parent.name] = max(steps, default=0)
        self.snapshots.append((time.time(), found))


@dataclass
class Findings:
    """What became of a tortured sweep.

    Attributes:
        lost: Trials that did not end as undisturbed.
        again: Finished trials that were started again.
        restarts: Trials that went on after a kill and were heard of again.
        redone: Steps that were checkpointed before a kill and trained again after it, at most.
        same_table: The final table equals the undisturbed one's byte by byte.
        wrong_points: Points that MLflow lacks, or has without being due, or more than once.
        points: Points that were due.
    """

    lost: int = 0
    again: int = 0
    restarts: int = 0
    redone: int = 0
    same_table: bool = False
    wrong_points: int = 0
    points: int = 0
    states: dict[str, int] = field(default_factory=dict)


def findings(sweep: TorturedSweep, expected: SweepView, uri: str) -> Findings:
    """Compares a sweep that has ended with the undisturbed one and with MLflow."""
    view = read_ledger(sweep.folder)
    found = Findings(same_table=table(view) == table(expected))
    found.states = dict(Counter(trial.state for trial in view.trials.values()))
    found.lost = sum(
        name not in view.trials or view.trials[name].state != trial.state
        for name, trial in expected.trials.items()
    )
    lines: dict[str, list[dict[str, Any]]] = {}
    for line in read_lines(sweep.folder):
        lines.setdefault(line["trial"], []).append(line)
    for name, trial in view.trials.items():
        events = [line["event"] for line in lines[name]]
        found.again += "finished" in events and "started" in events[events.index("finished") :]
        redone = _redone(lines[name], trial.config["train"]["checkpoint_every"], sweep.snapshots)
        found.restarts += len(redone)
        found.redone = max([found.redone, *redone])
    due, there = rows_due(sweep.folder), rows_at(uri)
    found.points, found.wrong_points = due.total(), ((there - due) + (due - there)).total()
    return found


def table(view: SweepView) -> bytes:
    """What a sweep found, without clocks and places."""
    rows = {
        name: [trial.state, trial.objective, trial.step, [[s, _timeless(m)] for s, m in trial.reports]]
        for name, trial in sorted(view.trials.items())
    }
    return json.dumps(rows, sort_keys=True).encode()


def _timeless(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name != "seconds"}


def _redone(
    lines: Sequence[Mapping[str, Any]], every: int, snapshots: Sequence[tuple[float, Mapping[str, int]]]
) -> list[int]:
    """For each restart of one trial, steps from where it went on to the newest checkpoint there was."""
    found: list[int] = []
    known, restarted = 0, None
    for line in lines:
        if line["event"] == "started":
            restarted = line["time"] if line["attempt"] > 1 else None
        elif line["event"] in ("checkpointed", "finished"):
            went_on_from = (line["step"] - 1) // every * every
            if restarted is not None:
                at = bisect_right(snapshots, restarted, key=lambda each: each[0]) - 1
                written = snapshots[at][1].get(line["trial"], 0) if at >= 0 else 0
                found.append(max(known, written) - went_on_from)
                restarted = None
            known = line["step"]
    return [max(0, steps) for steps in found]


def _has_begun(folder: Path) -> bool:
    """Whether the ledger has a whole line; before that there is nothing to resume."""
    ledger = folder / LEDGER_NAME
    return ledger.exists() and b"\n" in ledger.read_bytes()


def _steps(folder: Path) -> dict[str, tuple[str, int]]:
    """Host and steps of every trial that runs, as far as the ledger knows."""
    if not _has_begun(folder):
        return {}
    trials = read_ledger(folder).trials.items()
    return {name: (trial.host, trial.step) for name, trial in trials if trial.state == "running"}


def _is_host(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return bool(process.cmdline()) and process.cmdline()[0].startswith("ray::HostActor")
    return False
