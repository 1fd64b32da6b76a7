"""What happens to a trial while a pack trains it. Plain data, picklable, free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Checkpointed", "Event", "Failed", "Finished", "Reported"]

FailureKind = Literal["error", "diverged", "out-of-memory", "exited", "lost"]


@dataclass(frozen=True)
class Reported:
    """A trial was evaluated on the validation split after `step` optimizer steps.

    `metrics` holds `train_loss` (mean since the last report), `lr`, `val_loss`, the task's metrics
    by their names, and `seconds` (time in this pack, shared with neighbours).
    """

    trial: str
    step: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Checkpointed:
    """A trial's state after `step` steps was written atomically to `path`."""

    trial: str
    step: int
    path: str


@dataclass(frozen=True)
class Finished:
    """A trial reached its length; `adapter` is the folder of its adapter."""

    trial: str
    step: int
    metrics: dict[str, float]
    adapter: str


@dataclass(frozen=True)
class Failed:
    """A trial ended without a result.

    Attributes:
        beside: Other trials that may have caused it: those of the same pack, host or memory.
    """

    trial: str
    step: int
    kind: FailureKind
    reason: str
    beside: int = 0


Event = Reported | Checkpointed | Finished | Failed
