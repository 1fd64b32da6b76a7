"""Host time to end one trial and start the next in a warm pack.

The digits ViT, K = 5, batch 16. A switch is everything between the last step of the old trial and the
first of the new one: `withdraw` (or, at its natural end, the writing of its adapter) and `admit`. No
model or data is loaded: the base's weights are the same memory before and after, which is checked.
For scale, `peer` is what the switch replaces: loading base and data and building PEFT's LoRA anew in a
process that has imported everything.

Rows (ratio = seconds per switch, median):
    withdraw-admit    a pruned trial makes room: at most 0.1
    finish-admit      a trial ends by itself (its evaluation and its adapter's files included): at most 0.1
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch

from benchmarks._common import Row, finish, interleaved, is_quick, machine, median, timed
from benchmarks._peers.lora import LoraTrainer
from replora.config import RunConfig, TrainConfig
from replora.models.load import load_backbone
from replora.tasks.load import load_task
from replora.train.events import Finished
from replora.train.pack import Pack

SLOTS = 5


class WarmPack:
    """A pack of K long trials in which one slot is switched over and over."""

    def __init__(self, folder: Path) -> None:
        config = RunConfig()
        self._backbone = load_backbone(config.backbone, precision="fp32", device="cpu")
        task = load_task(config.task, precision="fp32", device="cpu")
        self._folder = folder
        self._pack = Pack(config, self._backbone, task, SLOTS)
        self._count = 0
        for _ in range(SLOTS - 1):
            self._admit(10_000)
        self._pack.step()
        self._weights = {p.data_ptr() for p in self._backbone.model.parameters()}

    def _admit(self, steps: int) -> str:
        name = f"trial-{self._count}"
        self._count += 1
        train = TrainConfig(steps=steps, eval_every=10_000, checkpoint_every=10_000)
        self._pack.admit(name, RunConfig(train=train, seed=self._count), self._folder / name)
        return name

    def withdraw_admit(self) -> float:
        """Seconds from the step before a withdrawal to the step after the new trial's admission."""
        name = self._admit(10_000)
        self._pack.step()
        start = time.perf_counter()
        self._pack.withdraw(name)
        name = self._admit(10_000)
        seconds = time.perf_counter() - start
        self._pack.step()
        self._pack.withdraw(name)
        return seconds

    def finish_admit(self) -> float:
        """Seconds that a trial's end and its successor's start add to a plain step."""
        self._admit(2)
        plain = timed(self._pack.step)
        start = time.perf_counter()
        events = self._pack.step()
        name = self._admit(10_000)
        seconds = time.perf_counter() - start - plain
        if not any(isinstance(event, Finished) for event in events):
            raise RuntimeError(f"a trial of two steps did not finish in its second step: {events}")
        self._pack.step()
        self._pack.withdraw(name)
        return seconds

    def shares_weights(self) -> bool:
        """Whether the base still lies where it lay at the start."""
        return self._weights == {p.data_ptr() for p in self._backbone.model.parameters()}


def cold_start() -> float:
    """Seconds to load base and data and to build PEFT's LoRA, imports not counted."""
    config = RunConfig()
    start = time.perf_counter()
    backbone = load_backbone(config.backbone, precision="fp32", device="cpu")
    task = load_task(config.task, precision="fp32", device="cpu")
    LoraTrainer(backbone, ["qkv"], 8, task.head_width, config.optim, 100)
    return time.perf_counter() - start


def main() -> None:
    repeats = 2 if is_quick(__doc__) else 30
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        warm = WarmPack(Path(folder))
        sides = {"withdraw-admit": warm.withdraw_admit, "finish-admit": warm.finish_admit}
        figures = interleaved({**sides, "cold": cold_start}, repeats)
        if not warm.shares_weights():
            raise RuntimeError("the base was loaded or copied again during a switch")
    seconds = {name: median(values) for name, values in figures.items()}
    finish(
        [
            Row(name, seconds[name], seconds["cold"], "s per switch", seconds[name], 0.1, machine())
            for name in sides
        ]
    )


if __name__ == "__main__":
    main()
