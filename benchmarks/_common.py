"""What every benchmark shares: rows, their last line of JSON, interleaved repetitions, cold subprocesses."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = [
    "ROOT",
    "ColdRun",
    "Row",
    "child_environment",
    "cores",
    "finish",
    "fresh_cache",
    "interleaved",
    "is_quick",
    "machine",
    "median",
    "run_cold",
    "say",
    "timed",
]

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Row:
    """One measured comparison.

    Attributes:
        name: What was compared.
        ours: Our figure, in `unit`.
        peer: The peer's figure in the same unit, from the same run; null where the aim is absolute.
        unit: Of `ours` and `peer`.
        ratio: Reads against `aim` as the benchmark's docstring says.
        aim: The figure that `ratio` should reach.
        device: The machine that was measured.
    """

    name: str
    ours: float
    peer: float | None
    unit: str
    ratio: float
    aim: float
    device: str


def is_quick(description: str | None) -> bool:
    """Whether `--quick` was given: tiny sizes that exercise the code and measure nothing."""
    first = (description or "").strip().splitlines()[0]
    parser = argparse.ArgumentParser(description=first)
    parser.add_argument("--quick", action="store_true", help="tiny sizes; the figures mean nothing")
    return bool(parser.parse_args().quick)


def finish(rows: Sequence[Row]) -> None:
    """Print the rows as the last line of the output, one line of JSON."""
    print(json.dumps([asdict(row) for row in rows]), flush=True)


def say(line: str) -> None:
    """Print a line for the person who watches; everything but the last line of stdout is free text."""
    print(line, flush=True)


def machine() -> str:
    """The device in words, for example `cpu: 2 x AMD EPYC`."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"cpu: {cores()} x {names[0] if names else platform.processor() or platform.machine()}"


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def median(values: Sequence[float]) -> float:
    """Median of the values."""
    return float(statistics.median(values))


def interleaved(sides: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Figures of every side, measured in turn (A B A B ...), so that a drifting machine hits all alike.

    Args:
        sides: Name of a side and a function that runs it once and returns its figure.
        repeats: Rounds; every other round runs the sides in reverse order.
    """
    figures: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats):
        for name in list(sides)[:: 1 if turn % 2 == 0 else -1]:
            figures[name].append(sides[name]())
    return figures


def timed(action: Callable[[], object]) -> float:
    """Seconds that one call of `action` takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def child_environment(threads: int) -> dict[str, str]:
    """Environment of a subprocess: this repository first, a set number of threads, no telemetry."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "OMP_NUM_THREADS": str(threads),
        "RAY_USAGE_STATS_ENABLED": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


@contextmanager
def fresh_cache() -> Iterator[None]:
    """An empty cache folder of the project, here and in subprocesses: nothing measured earlier counts."""
    before = os.environ.get("REPLORA_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["REPLORA_CACHE"] = folder
        try:
            yield
        finally:
            del os.environ["REPLORA_CACHE"]
            if before is not None:
                os.environ["REPLORA_CACHE"] = before


@dataclass(frozen=True)
class ColdRun:
    """A finished subprocess: when it started (unix seconds), how long it took, what it printed."""

    started: float
    seconds: float
    stdout: str


def run_cold(
    arguments: Sequence[str], threads: int, folder: Path, extra: Mapping[str, str] | None = None
) -> ColdRun:
    """`python <arguments>`, started from nothing as from a shell.

    Args:
        arguments: Of the Python interpreter.
        threads: `OMP_NUM_THREADS` of the process and of what it starts.
        folder: Working folder.
        extra: Further environment variables.

    Raises:
        RuntimeError: If the process fails; the message ends with the tail of its standard error.
    """
    command = [sys.executable, *arguments]
    started, start = time.time(), time.perf_counter()
    environment = {**child_environment(threads), **(extra or {})}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        tail = done.stderr[-2000:]
        raise RuntimeError(f"python {' '.join(arguments)} exited with status {done.returncode}:\n{tail}")
    return ColdRun(started, seconds, done.stdout)
