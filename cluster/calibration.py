"""One calibration step: a few real steps tell how much the allocator holds on top of a run's tensors.

The planner knows the tensors of a pass to a few percent; what an allocator keeps of freed blocks it can
only guess. A measured peak turns the guess into a share, which is remembered in the cache folder for
every run on this machine that differs in nothing but its sizes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from cluster.anatomy import Anatomy, anatomy_of
from cluster.memory import MIB, Setting, memory_of
from replora.config import RunConfig
from replora.errors import MachineError, PlanError
from replora.folders import cache_folder, write_note
from replora.train import heap
from replora.train.heap import Heap

__all__ = ["Peak", "calibrate", "kept_share", "remember", "remembered"]

_VERSION = 2
#: Passes smaller than this say nothing: the runtime itself differs by a few MiB (choice).
_LEAST = 32 * MIB


@dataclass(frozen=True)
class Peak:
    """What a process of a few training steps held at most.

    Attributes:
        device: Where it trained.
        held: Bytes: resident memory of the process, or what torch reserved on the GPU.
        heap: What served the process's memory.
    """

    device: Literal["cpu", "gpu"]
    held: int
    heap: Heap


def calibrate(config: RunConfig) -> float | None:
    """Trains a few steps of a run alone in a fresh process here, and remembers what it held.

    Returns:
        The share of `Memory.passing` that was held on top; None where the run is too small to tell.

    Raises:
        MachineError: If the run cannot be trained here; the message is its own.
        PlanError: If the sizes of its backbone are not known.
    """
    anatomy_of(config)
    done = subprocess.run(
        [sys.executable, "-m", "replora.train.calibrate", "1", "1"],
        input=config.model_dump_json(),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", **heap.environment()},
    )
    if done.returncode:
        said = done.stderr.strip() or f"exit status {done.returncode}"
        said = said.splitlines()[-1] if "Traceback" in said else said
        raise MachineError(f"the calibration's run failed: {said}\n  Plan without --calibrate.")
    return remember(config, Peak(**json.loads(done.stdout)["peak"]))


def remember(config: RunConfig, peak: Peak) -> float | None:
    """Keeps what a process of this run, alone, held at most; gives the share as `calibrate` does."""
    try:
        share = kept_share(config, anatomy_of(config), peak)
    except PlanError:
        return None  # a backbone that cannot be planned has nothing to correct
    if share is not None:
        write_note(_path(config), {"kept": share, "device": peak.device, "heap": peak.heap})
    return share


def remembered(config: RunConfig, device: Literal["cpu", "gpu"], heap: Heap) -> float | None:
    """The share for runs like this one; None where none was measured, or the note is damaged.

    Args:
        config: The run.
        device: Where it will train.
        heap: What will serve its memory; a share of another heap says nothing about this one.
    """
    try:
        content = json.loads(_path(config).read_bytes())
        share, where = float(content["kept"]), (content["device"], content["heap"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return share if where == (device, heap) and math.isfinite(share) and share >= 0 else None


def kept_share(config: RunConfig, anatomy: Anatomy, peak: Peak) -> float | None:
    """`(held - runtime - what stays) / passing - 1`, at least 0; None where a pass is too small to tell."""
    tokens = anatomy.tokens
    if tokens is None:
        return None
    train = config.train
    setting = Setting(train.micro_batch or train.batch, tokens)
    memory = memory_of(config, anatomy, setting, peak.device)
    trained = memory.activations + memory.temporaries  # no evaluation is run
    if trained < _LEAST:
        return None
    runtime = memory.runtime if peak.device == "cpu" else 0
    stays = memory.model - memory.passing
    return max(0.0, (peak.held - runtime - stays) / trained - 1)


def _path(config: RunConfig) -> Path:
    method = config.method.model_dump(mode="json")
    about = [_VERSION, config.backbone.name, config.train.precision, method["name"], method.get("targets")]
    digest = hashlib.sha256(json.dumps([*about, version("torch")]).encode()).hexdigest()[:16]
    return cache_folder() / f"memory-{digest}.json"
