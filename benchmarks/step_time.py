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
from functools import partial
from pathlib import Path

import torch

from benchmarks._common import Row, cores, finish, interleaved, is_quick, machine, median, say, timed
from benchmarks._peers.lora import LoraTrainer
from benchmarks._saved import saved_bytes
from benchmarks._steps import STEPS, Case, Side, cases, our_side, peer_side
from replora.config import ReploraMethod, RunConfig

RANK = 8


def peft(case: Case) -> Side:
    """PEFT's LoRA."""
    optim = RunConfig().optim
    trainer = LoraTrainer(case.backbone, case.peft_targets, RANK, case.task.head_width, optim, STEPS)
    return peer_side(case, trainer)


def time_row(case: Case, sides: dict[str, Side], threads: int, repeats: int) -> Row:
    """Median step of both sides, and the median of the ratios of neighbouring steps."""
    torch.set_num_threads(threads)
    for side in sides.values():
        for _ in range(3):
            side.step()
    timers = {name: partial(milliseconds, side.step) for name, side in sides.items()}
    figures = interleaved(timers, repeats)
    ratio = median([a / b for a, b in zip(figures["ours"], figures["peft"], strict=True)])
    row = f"{case.name}-{threads}-threads"
    return Row(row, median(figures["ours"]), median(figures["peft"]), "ms per step", ratio, 1.02, machine())


def milliseconds(step: Callable[[], object]) -> float:
    """Milliseconds of one step."""
    return 1e3 * timed(step)


def rows_of(case: Case, repeats: int) -> list[Row]:
    """Times with one and with two threads, and activations."""
    with tempfile.TemporaryDirectory() as folder:
        sides = {"ours": our_side(case, ReploraMethod(rank=RANK), Path(folder)), "peft": peft(case)}
        rows = [time_row(case, sides, threads, repeats) for threads in sorted({1, min(2, cores())})]
        ours_mib, peft_mib = (saved_bytes(side.step, side.frozen) / 2**20 for side in sides.values())
    ratio = ours_mib / peft_mib
    rows.append(Row(f"{case.name}-activations", ours_mib, peft_mib, "MiB", ratio, 1.02, machine()))
    for row in rows:
        say(f"  {row.name}: {row.ours:.2f} {row.unit}, PEFT {row.peer:.2f}, ratio {row.ratio:.3f}")
    return rows


def main() -> None:
    quick = is_quick(__doc__)
    finish([row for case in cases(quick=quick) for row in rows_of(case, 2 if quick else 40)])


if __name__ == "__main__":
    main()
