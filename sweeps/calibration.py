"""Measured speed of packs on this machine, and what its memory allowed: found once, then remembered.

A measurement costs a few seconds (a process per host that imports torch, loads the base and trains a
few steps of each width); its result is kept in the cache folder, so only the first sweep of its kind
on a machine pays for it. Limits of memory that a sweep has run into are kept likewise. Other training
code, another torch or another card knows neither: a measurement says nothing about them.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from cluster.calibration import Peak, remember
from cluster.doctor.software import gpus
from replora.config import RunConfig
from replora.errors import ConfigError, MachineError, ReploraError, RunFailedError
from replora.folders import cache_folder, write_note
from replora.train import heap
from replora.train.key import pack_key
from sweeps.config import SweepConfig
from sweeps.provenance import code_hash
from sweeps.resources import Layout, layout_of, slots_at_most, visible_gpus
from sweeps.retries import Limits

__all__ = ["calibrated_layout", "remember_limits", "remembered_layout", "remembered_limits"]

_VERSION = 1
#: Up to so many slots on a host a measurement would cost more than it can gain (choice).
_TOO_FEW = 4


@dataclass(frozen=True)
class _Measurement:
    """Trial-steps per second by width; widths up to `limit` were tried, until widening clearly hurt."""

    limit: int
    rates: dict[int, float]


def remembered_layout(config: SweepConfig) -> Layout:
    """The layout by what is known now: earlier measurements, else the rule. Starts nothing."""
    known = _read(_path(config, "pack-rates"))
    return layout_of(config, known.rates if known else None)


def calibrated_layout(config: SweepConfig) -> Layout:
    """The layout by measurement, taken now where none is remembered.

    Nothing is measured where slots are configured, where packs could not be wide, or where the hosts
    are on other machines.

    Raises:
        ReploraError: What a measuring process met: the trials would meet it too.
    """
    limit, path = slots_at_most(config), _path(config, "pack-rates")
    if config.run.engine.ranks > 1 or config.resources.slots or config.resources.address or limit <= _TOO_FEW:
        return layout_of(config)
    known = _read(path)
    if known is None or known.limit < limit:
        known = _Measurement(limit, _measure(config.run, layout_of(config), limit))
        write_note(path, asdict(known))
    return layout_of(config, known.rates)


def remembered_limits(config: SweepConfig) -> Limits | None:
    """What memory allowed in earlier sweeps of this kind on this machine; None: they met no limit.

    A number of slots that the configuration asks for is tried again.
    """
    try:
        content = json.loads(_path(config, "pack-memory").read_bytes())
        width = None if content["width"] is None else max(1, int(content["width"]))
        sizes = {str(key): max(1, int(size)) for key, size in content["micro_batches"].items()}
    except (OSError, ValueError, AttributeError, TypeError, KeyError):
        return None  # nothing is remembered, or the file is damaged: memory will tell again
    return Limits(None if config.resources.slots else width, sizes)


def remember_limits(config: SweepConfig, limits: Limits) -> None:
    """Keeps what memory allowed for later sweeps.

    Raises:
        MachineError: If the cache folder cannot be written.
    """
    if limits.width is not None or limits.micro_batches:
        write_note(_path(config, "pack-memory"), asdict(limits))


def _measure(run: RunConfig, layout: Layout, limit: int) -> dict[int, float]:
    """Mean rates of as many processes as there will be hosts, all measuring at once.

    What one of them held is remembered for plans.
    """
    words = [sys.executable, "-m", "replora.train.calibrate", str(limit), str(layout.threads)]
    gpus = visible_gpus()
    processes = [
        subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=_environment(layout.threads, gpus[index % len(gpus)] if gpus else None),
        )
        for index in range(layout.hosts)
    ]
    found: list[dict[int, float]] = []
    peak = None
    try:
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(run.model_dump_json())
            process.stdin.close()
            process.stdin = None
        for process in processes:
            answer, complaint = process.communicate()
            if process.returncode:
                raise _failure(process.returncode, complaint.strip())
            measured = json.loads(answer)
            found.append({int(width): float(rate) for width, rate in measured["rates"].items()})
            peak = measured["peak"]
    finally:
        for process in processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()
    if peak is not None:
        remember(run, Peak(**peak))
    common = set.intersection(*(set(rates) for rates in found))
    return {width: sum(rates[width] for rates in found) / len(found) for width in sorted(common)}


def _failure(status: int, complaint: str) -> ReploraError:
    """What the measuring process said, as the error that the sweep itself would meet."""
    if status in (RunFailedError.exit_status, ConfigError.exit_status, MachineError.exit_status):
        kinds = {ConfigError.exit_status: ConfigError, MachineError.exit_status: MachineError}
        return kinds.get(status, RunFailedError)(complaint)
    last = complaint.splitlines()[-1:] or [f"exit status {status}"]
    return MachineError(
        f"measuring the speed of packs failed: {last[0]}. Set resources.slots to go on without it."
    )


def _environment(threads: int, gpu: str | None) -> dict[str, str]:
    changes = {"OMP_NUM_THREADS": str(threads), **heap.environment()}
    if gpu is not None:
        changes["CUDA_VISIBLE_DEVICES"] = gpu
    return {**os.environ, **changes}


def _read(path: Path) -> _Measurement | None:
    """What is remembered; a damaged file counts as nothing and is measured again."""
    try:
        content = json.loads(path.read_bytes())
        rates = {int(width): float(rate) for width, rate in content["rates"].items()}
        return _Measurement(int(content["limit"]), rates) if rates else None
    except (OSError, ValueError, AttributeError, TypeError, KeyError):
        return None


def _path(config: SweepConfig, kind: str) -> Path:
    """Where knowledge of a kind is kept, by all that decides it: runs, hosts, code and machine."""
    layout = layout_of(config)
    machine = [_processor(), *(sorted(set(gpus() or ())) if visible_gpus() else ())]
    about = [
        *(_VERSION, pack_key(config.run), layout.hosts, layout.threads),
        *(code_hash(), version("torch"), *machine),
    ]
    digest = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
    return cache_folder() / f"{kind}-{digest}.json"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
