"""Sweeps that never ran, as the lines that a ledger would hold of them; the same ones every time."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from replora.config import RunConfig
from sweeps.ledger import Entry, Ledger, SweepView

STEPS = 200
LRS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
DECAYS = (0.0, 1e-5, 1e-4, 1e-3, 1e-2)
Point = dict[str, Any]
_BASE = RunConfig().model_dump(mode="json")


def grid_sweep(seeds: int = 3, *, name: str = "digits-grid", metric: str = "accuracy") -> Iterator[Entry]:
    """The paper's 5 x 5 grid with some seeds; the highest learning rate fails at strong decay."""
    points = [{"optim.lr": lr, "optim.weight_decay": wd} for lr, wd in itertools.product(LRS, DECAYS)]
    space = {"optim.lr": {"values": LRS}, "optim.weight_decay": {"values": DECAYS}}
    yield _first(name, metric, space)
    for number, (point, seed) in enumerate(itertools.product(points, range(seeds))):
        yield from trial(number, point, seed, metric=metric, outcome=_grid_outcome(point, seed))
    yield Entry("closed", None, {"state": "done"})


def _grid_outcome(point: Point, seed: int) -> str:
    hot = point["optim.lr"] == 1e-2
    if hot and point["optim.weight_decay"] == 1e-2:
        return "failed"
    if hot and point["optim.weight_decay"] == 1e-3:
        return "pruned"
    return "failed" if hot and seed == 1 and point["optim.weight_decay"] == 0 else "finished"


def free_sweep(trials: int, *, name: str = "digits-optuna", metric: str = "accuracy") -> Iterator[Entry]:
    """A continuous search with ASHA over learning rate, decay, rank, width and method."""
    space = {
        "optim.lr": {"log_uniform": [1e-4, 2e-2]},
        "optim.weight_decay": {"log_uniform": [1e-6, 1e-2]},
        "method.rank": {"values": [2, 4, 8, 16]},
        "method.hidden": {"log_integers": [8, 64]},
        "method.activation": {"values": ["gelu", "relu", "tanh"]},
    }
    yield _first(name, metric, space)
    draw = random.Random(0)
    for number in range(trials):
        point: Point = {
            "optim.lr": 10 ** draw.uniform(-4, -1.7),
            "optim.weight_decay": 10 ** draw.uniform(-6, -2),
            "method.rank": draw.choice([2, 4, 8, 16]),
            "method.hidden": round(2 ** draw.uniform(3, 6)),
            "method.activation": draw.choice(["gelu", "relu", "tanh"]),
        }
        outcome = draw.choices(["finished", "pruned", "failed"], [60, 36, 4])[0]
        yield from trial(number, point, 0, metric=metric, outcome=outcome)
    yield Entry("closed", None, {"state": "done"})


def trial(
    number: int, point: Point, seed: int = 0, *, metric: str = "accuracy", outcome: str = "finished",
    stage: str = "search", reason: str = "",
) -> Iterator[Entry]:  # fmt: skip
    """All lines of one trial that ends as `outcome` says (`running`: does not end)."""
    name = f"{number:08x}{seed:04x}"
    config = _config(point, seed)
    yield Entry(
        "asked", name, {"number": number, "stage": stage, "config": config, "point": point, "seed": seed}
    )
    yield Entry("started", name, {"host": "host-0", "attempt": 1, "data": "sha256:d161750"})
    last, end = 0.0, 100 if outcome in ("pruned", "running") else STEPS
    for step in range(20, end + 1, 20):
        last = _accuracy(point, number * 31 + seed, step)
        yield Entry("reported", name, {"step": step, "metrics": {metric: last, "train_loss": 1 - last}})
        if outcome == "failed" and step == 60:
            break
    if outcome == "finished":
        fields = {"step": STEPS, "metrics": {metric: last, "val_loss": 1 - last}, "objective": last}
        yield Entry("finished", name, {**fields, "adapter": "adapter", "seconds": 11.5 + number})
    elif outcome == "pruned":
        yield Entry("pruned", name, {"step": end, "objective": last, "reason": "worse than its rung"})
    elif outcome == "failed":
        why = reason or "train_loss is NaN after step 60"
        yield Entry("failed", name, {"step": 60, "kind": "diverged", "reason": why, "final": True})


def _config(point: Point, seed: int) -> dict[str, Any]:
    config = {key: dict(part) if isinstance(part, dict) else part for key, part in _BASE.items()}
    for key, value in point.items():
        section, _, name = key.partition(".")
        if name in config.get(section, {}):
            config[section][name] = value
    return {**config, "seed": seed}


def _accuracy(point: Point, seed: int, step: int) -> float:
    """A hill over the learning rate, a gentle one over the decay, rising over the steps, with noise."""
    noise = random.Random(seed * 1000 + step).gauss(0, 0.008)
    off = math.log10(point.get("optim.lr", 1e-3) / 1.2e-3)
    decay = math.log10(point.get("optim.weight_decay", 1e-4) + 1e-6)
    rank = 0.005 * math.log2(point.get("method.rank", 4))
    top = 0.93 - 0.16 * off**2 - 0.006 * (decay + 4) ** 2 + rank
    return max(0.2, min(0.995, 0.2 + (top - 0.2) * (1 - math.exp(-step / 45)) + noise))


def _first(name: str, metric: str, space: dict[str, Any]) -> Entry:
    fields = {
        "sweep": "5eeb0f5ca1ab1e00", "name": name, "git": "0123abc",
        "metric": metric, "direction": "maximize",
        "versions": {"replora": "0.1.0", "torch": "2.14.1", "ray": "2.60.0"},
        "config": {"name": name, "space": space, "tracking": {"uri": None}},
    }  # fmt: skip
    return Entry("sweep", None, fields)


def view_of(entries: Iterator[Entry], time: float = 1_700_000_000.0) -> SweepView:
    """What the ledger would say, without a file."""
    view = SweepView()
    for seq, entry in enumerate(entries):
        view.apply(
            {**entry.fields, "event": entry.event, "trial": entry.trial, "seq": seq, "time": time + seq}
        )
    return view


def write_ledger(folder: Path, entries: Iterator[Entry]) -> Path:
    """A sweep's folder with a real ledger."""
    with Ledger.open(folder) as ledger:
        ledger.append_all(entries)
    return folder
