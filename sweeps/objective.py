"""What a sweep optimizes: validation metrics, or quantities of a trial, each with its direction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from replora.config import RunConfig
from replora.errors import ConfigError
from replora.parameters import run_parameters
from replora.ppt import ppt
from replora.tasks import TASKS
from sweeps.config import ObjectiveConfig, SweepConfig

__all__ = [
    "METRICS",
    "PARAMETERS",
    "PRIMARY",
    "QUANTITIES",
    "VALIDATION_EXAMPLES",
    "Objective",
    "objective_of",
    "objectives_of",
    "parameters_of",
    "with_quantities",
]

Direction = Literal["maximize", "minimize"]

_FOLDERS = ("image-folder", "video-folder")
_TEXTS = ("text-to-text", *(name for name in TASKS if name.startswith("commonsense")))

#: Primary metric of each task; a test compares it with the tasks themselves, which need torch.
PRIMARY: dict[str, tuple[str, Direction]] = {
    "digits": ("accuracy", "maximize"),
    **dict.fromkeys(_FOLDERS, ("accuracy", "maximize")),
    **dict.fromkeys(_TEXTS, ("val_loss", "minimize")),
}

#: What each task reports at every evaluation and a sweep may optimize; `accuracy` of tasks of texts
#: needs `task.val_answers`.
METRICS: dict[str, tuple[str, ...]] = {
    "digits": ("accuracy", "val_loss", "train_loss"),
    **dict.fromkeys(_FOLDERS, ("accuracy", "val_loss", "train_loss")),
    **dict.fromkeys(_TEXTS, ("val_loss", "train_loss", "accuracy")),
}

PARAMETERS = "trainable_parameters"
#: What follows from a trial's configuration (and its accuracy), with its direction.
QUANTITIES: dict[str, Direction] = {PARAMETERS: "minimize", "ppt": "maximize"}

#: Size of the validation split where it is fixed (known: a test counts it).
VALIDATION_EXAMPLES: dict[str, int] = {"digits": 248}


@dataclass(frozen=True)
class Objective:
    """A validation metric by its reported name (`accuracy`, `val_loss`), or a quantity of the trial."""

    metric: str
    direction: Direction

    def better(self, value: float) -> float:
        """The value with its sign turned so that larger is better."""
        return value if self.direction == "maximize" else -value


def objectives_of(config: SweepConfig) -> tuple[Objective, ...]:
    """Everything that the sweep optimizes, in the order of its file.

    Raises:
        ConfigError: If the direction of a metric that is not the task's primary one is not given.
    """
    asked = config.objective if isinstance(config.objective, tuple) else (config.objective,)
    return tuple(_objective(each, config.run.task.name) for each in asked)


def objective_of(config: SweepConfig) -> Objective:
    """The first objective: as configured, else the task's primary metric.

    Raises:
        ConfigError: If the direction of a metric that is not the task's primary one is not given.
    """
    return objectives_of(config)[0]


def _objective(asked: ObjectiveConfig, task: str) -> Objective:
    metric, direction = PRIMARY[task]
    if asked.metric is None or asked.metric == metric:
        return Objective(metric, asked.direction or direction)
    if asked.direction is not None:
        return Objective(asked.metric, asked.direction)
    if asked.metric in QUANTITIES:
        return Objective(asked.metric, QUANTITIES[asked.metric])
    if asked.metric.endswith("loss"):
        return Objective(asked.metric, "minimize")
    raise ConfigError(
        f"objective.direction is needed for objective.metric: {asked.metric} (maximize or minimize);\n"
        f"  the primary metric of task {task} is {metric} ({direction})."
    )


def parameters_of(run: RunConfig) -> int | None:
    """Trainable parameters without the head, known before anything is built; None for unknown shapes."""
    return run_parameters(run)


def with_quantities(
    metrics: Mapping[str, float], objectives: Sequence[Objective], parameters: int | None
) -> dict[str, float]:
    """A trial's metrics with the quantities that some objectives name.

    Args:
        metrics: As the trial reported them.
        objectives: Of the sweep.
        parameters: `parameters_of` the trial's run.
    """
    found, named = dict(metrics), {objective.metric for objective in objectives}
    if PARAMETERS in named and parameters is not None:
        found[PARAMETERS] = float(parameters)
    if "ppt" in named and parameters is not None and "accuracy" in metrics:
        found["ppt"] = ppt(metrics["accuracy"], parameters)
    return found
