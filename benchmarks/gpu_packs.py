"""Packs of K RepLoRA trials on one LLaMA-7B on a GPU, against the same trials one after the other.

K = 1, 2, 4, 8 at 128, 512 and 4,096 tokens a job and step, bf16, random weights. Not run by this project,
which had no GPU at hand. `--quick`: a tiny LLaMA on the CPU, K = 1 and 2, through the same code.

A pack may gain at most min(K, utilisation packed / utilisation alone). *Utilisation* is 4 P tokens a second
over the card's peak: the share of its arithmetic that is used; in the ratio the peak cancels. What a pack
could reach is measured apart from the pack, or the bound would hold by definition: it is the utilisation of
one plain trial with K times the batch, the same base on the same number of tokens.

Rows, for each K and number of tokens:
    K<k>-<tokens>-sequential  ratio = trial-steps a second of the pack / of one trial alone: at least 0.97
                              (for K = 1 the same thing twice: the noise of these figures)
    K<k>-<tokens>-bound       ratio = that gain / min(K, utilisation of K batches / alone): at least 0.90
    K<k>-<tokens>-memory      ratio = |planned - allocated| / allocated in percent: at most 5
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

from benchmarks._common import Row, finish, is_quick, say
from benchmarks._gpu import Bench, bench, card, device_or_exit, free, memory_row, peak_flops, seconds, widest

LENGTH = 1_024
#: Texts of one pass over all slots at most (choice): 8,192 tokens of LLaMA-7B keep 34 GiB beside the base.
PASS = 8
METHOD = {"name": "replora", "rank": 32, "hidden": 64, "alpha": 32}


def rows_of(model: Bench, batch: int, slots: int, *, quick: bool) -> list[Row]:
    """The rows of a pack width at `batch` texts a trial and step."""
    micro = widest(lambda size: model.ours(METHOD, batch, slots, size), max(1, min(batch, PASS // slots)))
    sides = {
        "alone": (batch, 1, min(batch, PASS)),
        "pack": (batch, slots, micro),
        "plain": (batch * slots, 1, micro * slots),
    }
    makes = {side: partial(model.ours, METHOD, *shape) for side, shape in sides.items()}
    times = seconds(makes, model.device, quick=quick)
    found = {side: sides[side][0] * sides[side][1] * model.tokens / each for side, each in times.items()}
    name, device = f"K{slots}-{batch * model.tokens}", card(model.device)
    _show(name, found, model)
    gain, bound = found["pack"] / found["alone"], min(slots, found["plain"] / found["alone"])
    packed, alone = (found[side] / (batch * model.tokens) for side in ("pack", "alone"))
    return [
        Row(f"{name}-sequential", packed, alone, "trial-steps/s", gain, 0.97, device),
        Row(f"{name}-bound", gain, bound, "times as fast as alone", gain / bound, 0.90, device),
        memory_row(name, model, model.run(METHOD, batch, micro), slots),
    ]


def _show(name: str, found: dict[str, float], model: Bench) -> None:
    """The utilisations, for a person."""
    peak = peak_flops(model.device)
    if peak is not None:
        shares = (f"{side} {4 * model.parameters * rate / peak:.3f}" for side, rate in found.items())
        say(f"  {name}: share of the card's arithmetic: {', '.join(shares)}")


def main() -> None:
    quick = is_quick(__doc__)
    device, rows = device_or_exit(quick=quick), []
    name, longest = ("tiny", 16) if quick else ("llama-7b", LENGTH)
    widths, sizes = ((1, 2), (32,)) if quick else ((1, 2, 4, 8), (128, 512, 4_096))
    for tokens in sizes:
        length = min(tokens, longest)
        with tempfile.TemporaryDirectory() as folder:
            model = bench(name, length, Path(folder), device)
            for slots in widths:
                rows += rows_of(model, tokens // length, slots, quick=quick)
            del model
            free()
    finish(rows)


if __name__ == "__main__":
    main()
