"""One process of `pack_memory.py`: `python -m benchmarks._pack_process pack|peft K`.

Prints one line of JSON: growth of the peak resident memory over the bare base (`growth`), bytes that
one trial must add (`trial`: values, gradients, two moments and saved activations) and the base's bytes.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks._models import random_task, random_vit
from benchmarks._peers.lora import LoraTrainer
from benchmarks._saved import saved_bytes
from replora.config import LoraMethod, RunConfig, TrainConfig
from replora.models.base import Backbone
from replora.tasks.base import Task
from replora.train.pack import Pack

LONG = 100_000
BATCH = 4
SIDE = 96  # pixels: 37 tokens
ARRAYS = 4  # values, gradients, two moments of AdamW; 4 bytes each


def peak_bytes() -> int:
    """Peak resident memory since the last `reset_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def reset_peak() -> None:
    """Sets the peak back to what is resident now (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def packed(backbone: Backbone, task: Task, trials: int, folder: Path) -> Callable[[], object]:
    """A step of a pack of `trials` LoRA runs, the peer's method."""
    train = TrainConfig(steps=LONG, batch=BATCH, eval_every=LONG, checkpoint_every=LONG)
    config = RunConfig(method=LoraMethod(), train=train)
    pack = Pack(config, backbone, task, trials)
    for index in range(trials):
        name = f"trial-{index}"
        pack.admit(name, config.model_copy(update={"seed": index}), folder / name)
    return pack.step


def separate(backbone: Backbone, task: Task, trials: int) -> Callable[[], object]:
    """A step of `trials` PEFT LoRA models with a base each."""
    optim = RunConfig().optim
    trainers = [LoraTrainer(backbone, ["qkv"], 8, task.head_width, optim, LONG) for _ in range(trials)]
    batch = task.split("train").take(torch.arange(BATCH), None)

    def step() -> None:
        for trainer in trainers:
            trainer.step(batch, task)

    return step


def measure(kind: str, trials: int, folder: Path) -> dict[str, int]:
    backbone = random_vit("vit_small_patch16_224", image_size=SIDE)
    task = random_task("image", torch.randn(16, 3, SIDE, SIDE))
    with torch.no_grad():
        backbone.features(backbone.model, task.split("val").take(torch.arange(BATCH), None))
    reset_peak()
    before = peak_bytes()
    step = separate(backbone, task, trials) if kind == "peft" else packed(backbone, task, trials, folder)
    for _ in range(3):
        step()
    growth = peak_bytes() - before
    weights = list(backbone.model.parameters())
    width, blocks, rank = backbone.width, 12, LoraMethod().rank
    values = blocks * 2 * rank * 2 * width + task.head_width * (width + 1)
    saved = saved_bytes(step, weights) // trials
    return {
        "growth": growth,
        "trial": ARRAYS * 4 * values + saved,
        "base": sum(weight.numel() * weight.element_size() for weight in weights),
    }


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(sys.argv[1], int(sys.argv[2]), Path(folder))), flush=True)


if __name__ == "__main__":
    main()
