"""How numbers, times and names read, the same in the terminal and on the page."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime

from sweeps.objective import Objective

__all__ = [
    "amount",
    "axis_label",
    "better",
    "counted",
    "date",
    "duration",
    "in_order",
    "number",
    "objective_label",
    "plain",
    "point_text",
    "score",
    "short_names",
]

_FIRST = ("optim.lr", "optim.weight_decay")
_LABELS = {
    "optim.lr": "learning rate (per step)",
    "optim.weight_decay": "weight decay (decoupled)",
    "method.rank": "rank r",
    "method.alpha": "alpha (update is alpha / r * BA)",
    "method.hidden": "generator width h (features)",
    "method.dropout": "dropout (probability)",
    "train.batch": "batch (examples)",
    "train.steps": "optimizer steps",
    "task.train_images": "training images",
}


def plain(text: object, limit: int = 300) -> str:
    """One line without control characters, at most `limit` characters long.

    Reasons of failures come from anywhere; an escape sequence in one must not reach a terminal.
    """
    line = " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", " ", str(text)).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def number(value: object) -> str:
    """A value of a configuration or a metric; a float with four significant digits."""
    if isinstance(value, float):
        return f"{float(f'{value:.4g}'):.6g}".replace("e-0", "e-").replace("e+0", "e+")
    return plain(value, 60)


def amount(value: float) -> str:
    """An objective of any kind: whole numbers above 1 in full, everything else as `score` has it."""
    whole = math.isfinite(value) and value == round(value) and abs(value) > 1
    return f"{value:,.0f}" if whole else score(value)


def counted(count: int, noun: str, plural: str = "") -> str:
    """A number of things: `1 trial`, `2 trials`."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def score(value: float | None) -> str:
    """An objective, always with four significant digits, so that a column of them lines up."""
    return "none" if value is None else f"{value:#.4g}"


def duration(seconds: float) -> str:
    """A time span in its two largest units: `8 s`, `2 min 05 s`, `3 h 10 min`, `2 d 4 h`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def date(unix_seconds: float) -> str:
    """A moment in local time with its offset from UTC."""
    return datetime.fromtimestamp(unix_seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S UTC%z")


def short_names(keys: Collection[str]) -> dict[str, str]:
    """The shortest ending of every dotted key that no other key shares: `optim.lr` is `lr`."""
    names: dict[str, str] = {}
    for key in keys:
        parts = key.split(".")
        endings = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
        others = [other for other in keys if other != key]
        names[key] = next((e for e in endings if not any(f".{o}".endswith(f".{e}") for o in others)), key)
    return names


def point_text(point: Mapping[str, object]) -> str:
    """A point of the space in one line: `lr=0.001 rank=8`."""
    names = short_names(point)
    return " ".join(f"{names[key]}={number(point[key])}" for key in in_order(point))


def in_order(keys: Iterable[str]) -> list[str]:
    """Keys with learning rate and weight decay first, the others by name."""
    return sorted(keys, key=lambda key: (key not in _FIRST, key))


def axis_label(key: str) -> str:
    """What an axis shows, with its unit where there is one."""
    return _LABELS.get(key, plain(key, 60))


def objective_label(objective: Objective) -> str:
    """An objective with its direction, as an axis label."""
    aim = "higher" if objective.direction == "maximize" else "lower"
    return f"{plain(objective.metric, 60)} ({aim} is better)"


def better(value: float | None, than: float | None, direction: str) -> bool:
    """Whether a value is a number and better than another, where None and NaN are worse than all."""
    if value is None or math.isnan(value):
        return False
    if than is None or math.isnan(than):
        return True
    return value > than if direction == "maximize" else value < than
