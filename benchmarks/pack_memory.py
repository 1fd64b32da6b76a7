"""Resident memory of packs: K = 8 trials hold one frozen base.

A ViT of the shape of S/16 (21.6 million frozen parameters, 82 MiB) on images of 96 px, batch 4 a trial, so
that a copy of the base (82 MiB) would stand out from a trial's activations (29 MiB). LoRA of rank 8 on both
sides. Every figure is the peak resident memory of a fresh process over its three steps, less what it held
with the bare base; glibc is told to hand freed memory back (`MALLOC_MMAP_THRESHOLD_`), on both sides, so that
what is held is counted and not what was. Linux only.

Rows:
    growth          growth from K = 1 to K = 8 / the computed need of seven trials (values, gradients, two
                    moments, and what autograd saves for the backward pass): at most 1.25; one base per
                    trial would give about 3.6
    vs-eight-bases  base and growth of a pack of 8 / those of 8 PEFT models with a base each, which train
                    in turn and so never hold more than one trial's activations: at most 0.6
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from benchmarks._common import ROOT, Row, finish, is_quick, machine, median, run_cold, say

MIB = 2**20


@dataclass(frozen=True)
class Held:
    """Bytes: growth over the bare base, computed need of one trial, the base."""

    growth: int
    trial: int
    base: int


def held(kind: str, trials: int) -> Held:
    """What one fresh process holds."""
    words = ["-m", "benchmarks._pack_process", kind, str(trials)]
    done = run_cold(words, 1, ROOT, {"MALLOC_MMAP_THRESHOLD_": "65536"})
    found = Held(**json.loads(done.stdout.splitlines()[-1]))
    say(f"  {kind}, {trials} trials: {found.growth / MIB:.1f} MiB over the base")
    return found


def main() -> None:
    quick = is_quick(__doc__)
    most, repeats = (2, 1) if quick else (8, 3)
    alone = [held("pack", 1) for _ in range(repeats)]
    many = [held("pack", most) for _ in range(repeats)]
    peft = [held("peft", most) for _ in range(repeats)]
    growth = (median([h.growth for h in many]) - median([h.growth for h in alone])) / MIB
    needed = (most - 1) * alone[0].trial / MIB
    pack = (many[0].base + median([h.growth for h in many])) / MIB
    separate = median([h.growth for h in peft]) / MIB
    finish(
        [
            Row("growth", growth, needed, "MiB", growth / needed, 1.25, machine()),
            Row("vs-eight-bases", pack, separate, "MiB", pack / separate, 0.6, machine()),
        ]
    )


if __name__ == "__main__":
    main()
