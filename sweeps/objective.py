"""What a sweep optimizes: the name of a validation metric and its direction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from replora.errors import ConfigError
from replora.tasks import TASKS
from sweeps.config import SweepConfig

__all__ = ["METRICS", "PRIMARY", "VALIDATION_EXAMPLES", "Objective", "objective_of"]

Direction = Literal["maximize", "minimize"]

_COMMONSENSE = tuple(name for name in TASKS if name.startswith("commonsense"))

#: Primary metric of each task; a test compares it with the tasks themselves, which need torch.
PRIMARY: dict[str, tuple[str, Direction]] = {
    "digits": ("accuracy", "maximize"),
    "image-folder": ("accuracy", "maximize"),
    **dict.fromkeys(_COMMONSENSE, ("val_loss", "minimize")),
}

#: What each task reports at every evaluation and a sweep may optimize; `accuracy` of commonsense tasks
#: needs `task.val_answers`.
METRICS: dict[str, tuple[str, ...]] = {
    "digits": ("accuracy", "val_loss", "train_loss"),
    "image-folder": ("accuracy", "val_loss", "train_loss"),
    **dict.fromkeys(_COMMONSENSE, ("val_loss", "train_loss", "accuracy")),
}

#: Size of the validation split where it is fixed (known: a test counts it).
VALIDATION_EXAMPLES: dict[str, int] = {"digits": 248}


@dataclass(frozen=True)
class Objective:
    """A validation metric by its reported name (`accuracy`, `val_loss`) and which way is better."""

    metric: str
    direction: Direction

    def better(self, value: float) -> float:
        """The value with its sign turned so that larger is better."""
        return value if self.direction == "maximize" else -value


def objective_of(config: SweepConfig) -> Objective:
    """What the sweep optimizes: as configured, else the task's primary metric.

    Raises:
        ConfigError: If the direction of a metric that is not the task's primary one is not given.
    """
    metric, direction = PRIMARY[config.run.task.name]
    asked = config.objective
    if asked.metric is None or asked.metric == metric:
        return Objective(metric, asked.direction or direction)
    if asked.direction is not None:
        return Objective(asked.metric, asked.direction)
    if asked.metric.endswith("loss"):
        return Objective(asked.metric, "minimize")
    raise ConfigError(
        f"objective.direction is needed for objective.metric: {asked.metric} (maximize or minimize);\n"
        f"  the primary metric of task {config.run.task.name} is {metric} ({direction})."
    )
