"""One host of `planner_choice.py`: `python -m <this> RUN.json SLOTS THREADS SECONDS`.

Loads base and data, fills the slots, says `ready`, waits for a line on its standard input, trains for
about SECONDS and prints one line of JSON: optimizer steps (summed over slots) and the seconds they took.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import torch

from replora.config import RunConfig
from replora.models.load import load_backbone
from replora.tasks.load import load_task
from replora.train.pack import Pack

LONG = 1_000_000


def filled_pack(config: RunConfig, slots: int, folder: Path) -> Pack:
    """A warm pack whose trials never end, evaluate or write."""
    backbone = load_backbone(config.backbone, precision="fp32", device="cpu")
    task = load_task(config.task, precision="fp32", device="cpu")
    train = config.train.model_copy(update={"steps": LONG, "eval_every": LONG, "checkpoint_every": LONG})
    pack = Pack(config, backbone, task, slots)
    for seed in range(slots):
        name = f"trial-{seed}"
        pack.admit(name, config.model_copy(update={"seed": seed, "train": train}), folder / name)
    for _ in range(3):
        pack.step()
    return pack


def main() -> None:
    run, slots, threads, seconds = sys.argv[1:]
    torch.set_num_threads(int(threads))
    config = RunConfig.model_validate_json(Path(run).read_text())
    with tempfile.TemporaryDirectory() as folder:
        pack = filled_pack(config, int(slots), Path(folder))
        print("ready", flush=True)
        sys.stdin.readline()
        start, steps = time.perf_counter(), 0
        while time.perf_counter() - start < float(seconds):
            pack.step()
            steps += int(slots)
        took = time.perf_counter() - start
    print(json.dumps({"steps": steps, "seconds": took}), flush=True)


if __name__ == "__main__":
    main()
