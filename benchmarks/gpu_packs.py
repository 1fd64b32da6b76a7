"""Packs of K RepLoRA trials on one LLaMA-7B on a GPU, against the same trials one after the other.

K = 1, 2, 4, 8 at 128, 512 and 4,096 tokens a job and step, bf16, random weights. Not run by this project,
which had no GPU at hand. `--quick`: a tiny LLaMA on the CPU, K = 1 and 2.

Rows, for each K and number of tokens:
    K<k>-<tokens>  ratio = trial-steps a second of the pack / those of one trial alone: at least 0.97 (what
                   packing may gain is bounded by min(K, utilisation packed / alone); it must not lose)
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from benchmarks._common import Row, finish, is_quick, machine
from benchmarks._gpu import LENGTH, Bench, bench, device_or_exit, seconds_a_step

METHOD = {"name": "replora", "rank": 32, "hidden": 64, "alpha": 32}


def rate(model: Bench, batch: int, slots: int, steps: int) -> float:
    """Trial-steps a second of a pack."""
    found = slots / seconds_a_step(model.ours(METHOD, batch, slots), model.device, steps)
    if model.device.type == "cuda":
        torch.cuda.empty_cache()
    return found


def main() -> None:
    quick = is_quick(__doc__)
    device, rows = device_or_exit(quick=quick), []
    name = machine() if quick else f"gpu: {torch.cuda.get_device_name(device)}"
    widths, sizes, steps = ((2,), (32,), 1) if quick else ((2, 4, 8), (128, 512, 4_096), 10)
    for tokens in sizes:
        length = min(tokens, LENGTH)
        with tempfile.TemporaryDirectory() as folder:
            model = bench("tiny" if quick else "llama-7b", length, Path(folder), device)
            alone = rate(model, tokens // length, 1, steps)
            for slots in widths:
                packed = rate(model, tokens // length, slots, steps)
                rows.append(
                    Row(f"K{slots}-{tokens}", packed, alone, "trial-steps/s", packed / alone, 0.97, name)
                )
            del model
    finish(rows)


if __name__ == "__main__":
    main()
