"""Time and saved activations of one optimizer step of solo RepLoRA against PEFT's LoRA.

Same rank, same targets, same data; a step is everything: batch, forward, backward, clipping, AdamW and
schedule. Bases have random weights: a Llama of 30 million parameters (PEFT on `q_proj` and `v_proj`;
4 x 128 tokens) and a ViT-S/16 at 224 px (batch 8; PEFT on timm's fused `qkv`, which is the cheaper way to
adapt it). Steps alternate between the two sides.

Rows (ratio = ours / PEFT):
    <base>-<n>-threads    median of a step's time over its neighbour's: at most 1.02
    <base>-activations    bytes that autograd keeps for the backward pass: at most 1.02
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks._common import Row, cores, finish, interleaved, is_quick, machine, median, say, timed
from benchmarks._models import llama_30m, random_task, random_vit
from benchmarks._peers.lora import LoraTrainer
from replora.config import ReploraMethod, RunConfig, TrainConfig
from replora.models.base import Backbone
from replora.tasks.base import Task
from replora.train.pack import Pack

RANK = 8
STEPS = 100_000  # never reached: no evaluation and no checkpoint falls into a measured step


@dataclass(frozen=True)
class Case:
    """A base with a task of random data, PEFT's names of the targets and the batch."""

    name: str
    backbone: Backbone
    task: Task
    peft_targets: tuple[str, ...]
    batch: int


def cases(*, quick: bool) -> list[Case]:
    torch.manual_seed(0)
    tokens = torch.randint(8192, (16, 8 if quick else 128))
    llama = llama_30m(1 if quick else 8)
    found = [Case("llama-30m", llama, random_task("tokens", tokens), ("q_proj", "v_proj"), 4)]
    if not quick:
        vit = random_vit("vit-s16")
        images = torch.randn(16, 3, 224, 224)
        found.append(Case("vit-s16", vit, random_task("image", images), ("qkv",), 8))
    return found


def our_step(case: Case, folder: Path) -> Callable[[], object]:
    """One optimizer step of RepLoRA as a pack of one."""
    train = TrainConfig(steps=STEPS, batch=case.batch, eval_every=STEPS, checkpoint_every=STEPS)
    config = RunConfig(method=ReploraMethod(rank=RANK), train=train)
    pack = Pack(config, case.backbone, case.task, 1)
    pack.admit("solo", config, folder)
    return pack.step


def peft_step(case: Case) -> Callable[[], object]:
    """One optimizer step of PEFT's LoRA; batches in a shuffled order, as ours."""
    optim = RunConfig().optim
    trainer = LoraTrainer(case.backbone, case.peft_targets, RANK, case.task.head_width, optim, STEPS)
    split = case.task.split("train")

    def step() -> Tensor:
        chosen = torch.randperm(len(split))[: case.batch]
        return trainer.step(split.take(chosen, None), case.task)

    return step


def time_row(case: Case, sides: dict[str, Callable[[], object]], threads: int, repeats: int) -> Row:
    """Median step of both sides, and the median of the ratios of neighbouring steps."""
    torch.set_num_threads(threads)
    for step in sides.values():
        for _ in range(3):
            step()
    timers = {name: (lambda step=step: 1e3 * timed(step)) for name, step in sides.items()}
    figures = interleaved(timers, repeats)
    ratio = median([a / b for a, b in zip(figures["ours"], figures["peft"], strict=True)])
    name, ours, peft = f"{case.name}-{threads}-threads", median(figures["ours"]), median(figures["peft"])
    say(f"  {name}: {ours:.2f} ms, PEFT {peft:.2f} ms, ratio {ratio:.3f}")
    return Row(name, ours, peft, "ms per step", ratio, 1.02, machine())


def rows_of(case: Case, repeats: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        sides = {"ours": our_step(case, Path(folder)), "peft": peft_step(case)}
        rows = [time_row(case, sides, n, repeats) for n in sorted({1, min(2, cores())})]
        ours, peft = (saved_mib(case, step) for step in sides.values())
    return [*rows, Row(f"{case.name}-activations", ours, peft, "MiB", ours / peft, 1.02, machine())]


def main() -> None:
    quick = is_quick(__doc__)
    finish([row for case in cases(quick=quick) for row in rows_of(case, 2 if quick else 40)])


if __name__ == "__main__":
    main()
