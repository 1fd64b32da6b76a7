"""LLaMA-7B and 13B on one GPU: RepLoRA against PEFT's LoRA and DoRA, share of peak, memory against the plan.

Random weights in bf16, 4 texts of 1,024 tokens a step, rank 32 on query and value; sides alternate. Written
for an 80 GB card; not run by this project, which had no GPU at hand. `--quick`: a tiny LLaMA on the CPU.

Rows, for each model:
    vs-lora        ratio = seconds of PEFT's LoRA / ours: at least 1.0
    vs-dora        ratio = seconds of PEFT's DoRA / ours: at least 1.0
    share-of-peak  ratio = 4 P tokens a second / the card's dense bf16 FLOP/s (known cards): at least 0.55
    memory         ratio = |planned - reserved| / reserved in percent, of the tensors' bytes: at most 5
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import torch

from benchmarks._common import Row, finish, interleaved, is_quick, machine, median, say
from benchmarks._gpu import LENGTH, PEAKS, Bench, bench, device_or_exit, seconds_a_step
from cluster.anatomy import anatomy_of
from cluster.memory import Setting, memory_of

BATCH, RANK = 4, 32
REPLORA = {"name": "replora", "rank": RANK, "hidden": 64, "alpha": RANK}


def rows_of(name: str, model: Bench, *, quick: bool) -> list[Row]:
    steps, repeats = (1, 1) if quick else (10, 3)
    timed = partial(seconds_a_step, device=model.device, steps=steps)
    sides = {
        "ours": lambda: timed(model.ours(REPLORA, BATCH)),
        "lora": lambda: timed(model.peft(BATCH, RANK, dora=False)),
        "dora": lambda: timed(model.peft(BATCH, RANK, dora=True)),
    }
    found = {side: median(values) for side, values in interleaved(sides, repeats).items()}
    ours, device = found["ours"], card(model.device)
    rows = [
        Row(f"{name}-vs-{peer}", ours, found[peer], "s a step", found[peer] / ours, 1.0, device)
        for peer in ("lora", "dora")
    ]
    speed = BATCH * model.tokens / ours
    say(f"  {name}: {speed:.0f} tokens/s")
    peak = next((flops for part, flops in PEAKS.items() if part in device), None)
    if peak is not None:
        share = 4 * model.parameters * speed / peak
        rows.append(Row(f"{name}-share-of-peak", speed, None, "tokens/s", share, 0.55, device))
    if model.device.type == "cuda":
        rows.append(memory_row(name, model))
    return rows


def memory_row(name: str, model: Bench) -> Row:
    """The plan's bytes of one step against what torch reserved for it."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(model.device)
    step = model.ours(REPLORA, BATCH)
    step()
    step()
    measured = torch.cuda.max_memory_reserved(model.device)
    run = model.run(REPLORA, BATCH)
    memory = memory_of(run, anatomy_of(run), Setting(BATCH, model.tokens), "gpu")
    planned = memory.model - memory.evaluation
    error = 100 * abs(planned - measured) / measured
    gib = 2**30
    return Row(f"{name}-memory", planned / gib, measured / gib, "GiB", error, 5.0, card(model.device))


def card(device: torch.device) -> str:
    """The GPU's name, or the CPU's."""
    return machine() if device.type == "cpu" else f"gpu: {torch.cuda.get_device_name(device)}"


def main() -> None:
    quick = is_quick(__doc__)
    device, rows = device_or_exit(quick=quick), []
    for name in ("tiny",) if quick else ("llama-7b", "llama-13b"):
        with tempfile.TemporaryDirectory() as folder:
            model = bench(name, 32 if quick else LENGTH, Path(folder), device)
            rows += rows_of(name, model, quick=quick)
            del model
    finish(rows)


if __name__ == "__main__":
    main()
