"""One process of the doctor's gang: `python -m cluster.doctor.collective RANK RANKS HOST:PORT`.

Joins the others exactly as a trial of several ranks does (`replora.train.ranks`), then sums numbers with
them: over gloo, and over NCCL where this process sees a GPU. After each stage it says so in a line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time

import torch

from replora.train import ranks

__all__ = ["main"]

#: Numbers of a sum, fp32 (choice): 16 MiB, about the gradient of a small adapter.
NUMBERS = 2**22


def main(rank: int, count: int, address: str) -> None:
    """Joins, sums, says how far it came."""
    _say("started", 0.0)
    ranks.join(rank, count, address)
    _say("gloo", _summed(torch.device("cpu"), rank, count))
    if torch.cuda.is_available():
        _say("nccl", _summed(torch.device("cuda"), rank, count))
    os._exit(0)  # all is said; a regular end may wait for the libraries' threads


def _summed(device: torch.device, rank: int, count: int) -> float:
    """Seconds of the second of two sums over the ranks; the first makes the connections."""
    expected = count * (count + 1) / 2
    for _ in range(2):
        numbers = torch.full((NUMBERS,), float(rank + 1), device=device)
        began = time.perf_counter()
        ranks.total(numbers)
        if not bool((numbers == expected).all()):  # a look at the numbers waits for the GPU, too
            sys.exit(f"the sum over {count} processes is {numbers[0].item()}, not {expected}")
    return time.perf_counter() - began


def _say(stage: str, seconds: float) -> None:
    sys.stdout.write(json.dumps({"stage": stage, "seconds": seconds}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
