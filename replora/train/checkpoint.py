"""A slot's state on disk: parameters, moments, counters, reports; atomic, checksummed, two newest kept.

Data order and random streams are functions of the seed and the step (`replora.train.streams`), so
the step is all that has to be remembered of them. Reports are carried because the process that should
record them may die before it does: whoever goes on from a checkpoint has them again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from replora.atomic import write_atomically
from replora.errors import CheckpointError

__all__ = ["Report", "SlotState", "newest_checkpoint", "read_checkpoint", "write_checkpoint"]

FORMAT = "replora-checkpoint/3"
KEPT = 2
_log = logging.getLogger(__name__)

#: Step and metrics.
Report = tuple[int, dict[str, float]]


@dataclass(frozen=True)
class SlotState:
    """Everything that a slot needs to go on as if it had never stopped.

    Attributes:
        fingerprint: Of the run.
        step: Optimizer steps done.
        loss_sum: Sum of training losses since the last report.
        loss_count: Number of them.
        tensors: `value/<name>`, `first/<name>`, `second/<name>` in the method's own shapes.
        reports: Step and metrics of each report that this state comes after and that may not be recorded.
    """

    fingerprint: str
    step: int
    loss_sum: float
    loss_count: int
    tensors: dict[str, Tensor]
    reports: tuple[Report, ...] = ()


def write_checkpoint(folder: Path, state: SlotState) -> Path:
    """Writes `step-<n>.safetensors` and removes all but the newest two."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.cpu().contiguous() for name, tensor in state.tensors.items()}
    counters: dict[str, object] = {"step": state.step, "loss_sum": state.loss_sum.hex()}
    counters |= {"loss_count": state.loss_count, "reports": state.reports}
    counters |= {"digest": _digest(counters, tensors), "format": FORMAT, "fingerprint": state.fingerprint}
    path = folder / f"step-{state.step:08d}.safetensors"
    write_atomically(path, save(tensors, metadata={"replora": json.dumps(counters)}))
    for old in _files(folder)[KEPT:]:
        old.unlink(missing_ok=True)
    return path


def newest_checkpoint(folder: Path, fingerprint: str) -> SlotState | None:
    """The newest undamaged checkpoint of this run, or None; damaged ones are named in the log.

    Args:
        folder: Of the run's checkpoints.
        fingerprint: Of the run.

    Raises:
        CheckpointError: If the folder holds checkpoints of another run.
    """
    for path in _files(folder):
        try:
            state = read_checkpoint(path)
        except CheckpointError as error:
            if not path.exists():  # replaced by a process that has not yet heard that it should end
                return newest_checkpoint(folder, fingerprint)
            _log.warning("%s; trying the one before", error)
            continue
        if state.fingerprint != fingerprint:
            raise CheckpointError(
                f"{path}: belongs to the run {state.fingerprint}, not to {fingerprint}. Use another folder."
            )
        return state
    return None


def read_checkpoint(path: Path) -> SlotState:
    """Reads and verifies one checkpoint.

    Raises:
        CheckpointError: If it is truncated, damaged or of another format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        counters = json.loads(metadata["replora"])
        if counters["format"] != FORMAT:
            raise CheckpointError(f"{path}: format must be {FORMAT!r}, but got {counters['format']!r}")
        if counters["digest"] != _digest(counters, tensors):
            raise CheckpointError(f"{path}: damaged: its content does not match its checksum")
        return SlotState(
            fingerprint=counters["fingerprint"],
            step=int(counters["step"]),
            loss_sum=float.fromhex(counters["loss_sum"]),
            loss_count=int(counters["loss_count"]),
            tensors=tensors,
            reports=tuple((int(step), dict(metrics)) for step, metrics in counters["reports"]),
        )
    except CheckpointError:
        raise
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-????????.safetensors"), reverse=True)


def _digest(counters: Mapping[str, object], tensors: Mapping[str, Tensor]) -> str:
    """Over all but the run's name: a copy of a run takes its checkpoints over."""
    counted = [counters[key] for key in ("step", "loss_sum", "loss_count", "reports")]
    digest = hashlib.sha256(json.dumps(counted).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()
