"""LLaMA-7B and 13B on one GPU: RepLoRA against PEFT's LoRA and DoRA, share of peak, memory against the plan.

Random weights in bf16, texts of 1,024 tokens, 4 of them (4,096 tokens) a step, rank 32 on query and value;
sides alternate. Where one of PEFT's does not fit the card with 4 texts (its DoRA keeps more), both sides are
compared at as many as fit. Written for an 80 GB card; not run by this project, which had no GPU at hand.
`--quick`: a tiny LLaMA on the CPU, through the same code.

Rows, for each model:
    vs-lora        ratio = seconds of PEFT's LoRA / ours: at least 1.0
    vs-dora        ratio = seconds of PEFT's DoRA / ours: at least 1.0
    share-of-peak  ratio = 4 P tokens a second / the card's dense bf16 FLOP/s (known cards): at least 0.55
    memory         ratio = |planned - allocated| / allocated in percent: at most 5
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

from benchmarks._common import Row, finish, is_quick, say
from benchmarks._gpu import Bench, bench, card, device_or_exit, free, memory_row, peak_flops, seconds, widest

LENGTH, BATCH, RANK = 1_024, 4, 32
REPLORA = {"name": "replora", "rank": RANK, "hidden": 64, "alpha": RANK}


def rows_of(name: str, model: Bench, *, quick: bool) -> list[Row]:
    """All rows of a model."""
    device, ours = card(model.device), partial(model.ours, REPLORA)
    rows = []
    for peer in ("lora", "dora"):
        theirs = partial(model.peft, rank=RANK, dora=peer == "dora")
        batch = min(widest(ours, BATCH), widest(theirs, BATCH))
        sides = {"ours": partial(ours, batch), peer: partial(theirs, batch)}
        found = seconds(sides, model.device, quick=quick)
        rates = ", ".join(f"{side} {batch * model.tokens / each:.0f}" for side, each in found.items())
        say(f"  {name}, {batch} texts of {model.tokens} tokens a step: tokens/s {rates}")
        ratio = found[peer] / found["ours"]
        rows.append(Row(f"{name}-vs-{peer}", found["ours"], found[peer], "s a step", ratio, 1.0, device))
    batch, peak = widest(ours, BATCH), peak_flops(model.device)
    if peak is not None and batch == BATCH:
        step = seconds({"ours": partial(ours, batch)}, model.device, quick=quick)["ours"]
        speed = batch * model.tokens / step
        share = 4 * model.parameters * speed / peak
        rows.append(Row(f"{name}-share-of-peak", speed, None, "tokens/s", share, 0.55, device))
    return [*rows, memory_row(name, model, model.run(REPLORA, batch), 1)]


def main() -> None:
    quick = is_quick(__doc__)
    device, rows = device_or_exit(quick=quick), []
    for name in ("tiny",) if quick else ("llama-7b", "llama-13b"):
        with tempfile.TemporaryDirectory() as folder:
            model = bench(name, 32 if quick else LENGTH, Path(folder), device)
            rows += rows_of(name, model, quick=quick)
            del model
            free()
    finish(rows)


if __name__ == "__main__":
    main()
