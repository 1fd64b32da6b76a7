"""One process of `methods.py`: `python -m benchmarks._peak_process BASE SIDE [--quick]`.

Prints the MiB by which the peak resident memory of three training steps lies above the frozen base. A
peer's model is a copy of the base, which is taken off, because a person would have it once.
"""

from __future__ import annotations

import gc
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks._pack_process import peak_bytes, reset_peak
from benchmarks._steps import cases
from benchmarks.methods import side_of


def main() -> None:
    """Measures one side of one base."""
    torch.set_num_threads(1)
    base, name, *quick = sys.argv[1:]
    (case,) = (each for each in cases(quick=bool(quick)) if each.name == base)
    with tempfile.TemporaryDirectory() as folder:
        gc.collect()
        reset_peak()
        before = peak_bytes()
        side = side_of(case, name, Path(folder))
        for _ in range(3):
            side.step()
        own = {p.data_ptr() for p in case.backbone.model.parameters()}
        copied = sum(p.nbytes for p in side.frozen if p.data_ptr() not in own)
        print((peak_bytes() - before - copied) / 2**20)


if __name__ == "__main__":
    main()
