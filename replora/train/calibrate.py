"""How fast packs of different widths train on this machine, and what one trial holds: a few real steps.

Run as a process of its own, one beside the other for each host of a sweep, so that hosts compete for
memory and caches as they will in the sweep:

    python -m replora.train.calibrate LIMIT THREADS < run.json
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from replora.config import RunConfig
from replora.errors import ReploraError
from replora.models.base import Backbone
from replora.tasks.base import Task
from replora.tasks.load import load_task
from replora.train.engine import load_base
from replora.train.footprint import peak_memory
from replora.train.loop import pick_device
from replora.train.pack import Pack
from replora.train.process import is_out_of_memory, prepare_process

__all__ = ["Measured", "pack_rates"]

_LEAST_SECONDS, _LEAST_STEPS = 0.3, 2  # choice: a rate good to a few percent in about a second in all
_HOPELESS = 0.9  # once a width is this much slower than the best, wider ones are not tried


@dataclass(frozen=True)
class Measured:
    """What a few steps told.

    Attributes:
        rates: Trial-steps per second by width of the pack.
        peak: Memory of the process after the steps of one trial alone (replora.train.footprint).
    """

    rates: dict[int, float]
    peak: dict[str, Any] | None


def pack_rates(config: RunConfig, backbone: Backbone, task: Task, limit: int) -> Measured:
    """Trial-steps per second of packs of 1, 2, 4, ... and `limit` slots, until widening hurts or memory ends.

    A trial-step is one optimizer step of one trial, without evaluation and checkpoints. A width that
    memory does not allow has the rate 0.
    """
    peak: dict[str, Any] | None = None
    endless = config.train.model_copy(update={"steps": 10**9, "eval_every": 10**9, "checkpoint_every": 10**9})
    rates: dict[int, float] = {}
    widths = [1 << power for power in range(limit.bit_length()) if 1 << power < limit] + [limit]
    with tempfile.TemporaryDirectory() as scratch:
        for width in widths:
            pack = Pack(config.model_copy(update={"train": endless}), backbone, task, width)
            try:
                for seed in range(width):
                    run = config.model_copy(update={"train": endless, "seed": seed})
                    pack.admit(f"trial-{seed}", run, Path(scratch))
                rates[width] = width * _steps_per_second(pack)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                rates[width] = 0.0
            peak = peak_memory(pick_device()) if width == 1 else peak
            if rates[width] <= _HOPELESS * max(rates.values()):
                break
    return Measured(rates, peak)


def _steps_per_second(pack: Pack) -> float:
    clock = _clock()
    pack.step()  # the first one allocates
    started, steps = clock(), 0
    while steps < _LEAST_STEPS or clock() - started < _LEAST_SECONDS:
        pack.step()
        steps += 1
    return steps / (clock() - started)


def _clock() -> Callable[[], float]:
    """This process's own CPU time where it is one thread, so that strangers on the machine do not count."""
    one_thread = pick_device().type == "cpu" and torch.get_num_threads() == 1
    return time.process_time if one_thread else time.perf_counter


def main() -> int:
    """Prints what it measured of the run on standard input, as JSON."""
    limit, threads = int(sys.argv[1]), int(sys.argv[2])
    config = RunConfig.model_validate_json(sys.stdin.read())
    prepare_process(threads)
    try:
        measured = _measure(config, limit)
    except ReploraError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_status
    sys.stdout.write(json.dumps(asdict(measured)) + "\n")
    return 0


def _measure(config: RunConfig, limit: int) -> Measured:
    device = pick_device()
    backbone = load_base(config, device)
    task = load_task(
        config.task, precision=config.train.precision, device=device, processor=backbone.processor
    )
    return pack_rates(config, backbone, task, limit)


if __name__ == "__main__":
    sys.exit(main())
