"""K trials on one frozen base in one process; a single run is a pack of one.

Every slot has its own parameters, learning rate, schedule, weight decay, clipping, seed, data order,
step counter, length and checkpoint. Occupied slots are the first rows of a few `[K, P]` matrices, so
ending a slot moves one row and admitting one writes one; its neighbours do not notice. A trial in a
pack equals the same trial alone (tests/contracts): packing changes only speed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from replora.config import RunConfig
from replora.errors import CheckpointError, ConfigError
from replora.methods.folder import SavedAdapter, save_adapter
from replora.methods.layout import Layout, Shapes, cover
from replora.models.base import Backbone
from replora.tasks.base import SplitName, Task
from replora.train import ranks
from replora.train.checkpoint import Report, SlotState, newest_checkpoint, write_checkpoint
from replora.train.events import Checkpointed, Event, Failed, Finished, Reported
from replora.train.key import pack_key
from replora.train.model import SlotModel
from replora.train.optim import adamw_step, clip_rows, in_force, learning_rate
from replora.train.streams import example_indices, pass_generator

if TYPE_CHECKING:
    from replora.train.engine import ShardedSlot

__all__ = ["Pack"]


@dataclass
class _Slot:
    """One occupied place: the trial's identity and counters (its numbers are a row of the matrices)."""

    trial: str
    config: RunConfig
    folder: Path
    shapes: Shapes
    step: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    reports: list[Report] = field(default_factory=list)
    since: float = field(default_factory=time.perf_counter)
    sharded: ShardedSlot | None = None

    @property
    def layout(self) -> Layout:
        """Of its own numbers, without padding."""
        return Layout(self.shapes)


class Pack:
    """Trains up to `slots` runs of one `pack_key` on one frozen base.

    Args:
        config: Any run of this pack; fixes what `pack_key` covers.
        backbone: The frozen base; several packs may share it.
        task: The data and the loss.
        slots: Largest number of trials at once, K.
        micro_batch: Examples of a trial per forward pass, a divisor of its batch; None: as configured.
            Gradients are accumulated, so it changes memory, and results by no more than rounding (and
            by the draw of dropout masks).
    """

    def __init__(
        self, config: RunConfig, backbone: Backbone, task: Task, slots: int, micro_batch: int | None = None
    ) -> None:
        self.slots = slots
        self._micro_batch = micro_batch or config.train.micro_batch or config.train.batch
        self._key = pack_key(config)
        self._engine = config.engine
        self._check_shares(config)
        self._backbone, self._task = backbone, task
        #: Moments are rows as the values are, unless DeepSpeed shares them among the ranks.
        self._parts = ("value",) if self._engine.zero else ("value", "first", "second")
        self._train_split = task.split("train")
        self._model = SlotModel(backbone, task, config)
        self._occupied: list[_Slot] = []
        self._layout = Layout({})
        self._rows = self._new_rows(0)
        self._leaves: dict[str, Tensor] = {}

    @property
    def free(self) -> int:
        """Slots that can admit a trial now."""
        return self.slots - len(self._occupied)

    @property
    def trials(self) -> tuple[str, ...]:
        """Names of the trials in training."""
        return tuple(slot.trial for slot in self._occupied)

    def admit(self, trial: str, config: RunConfig, folder: Path, recorded: int = 0) -> list[Reported]:
        """Starts a trial in a free slot, or goes on from the newest good checkpoint in its folder.

        Args:
            trial: Fingerprint of the run.
            config: The run; its `pack_key` must be this pack's.
            folder: The trial's own folder, for checkpoints and the adapter.
            recorded: Step of the last report that is safely recorded: checkpoints carry those after it.

        Returns:
            The reports after `recorded` that an earlier process made on the way to that checkpoint; it may
            have died before anybody heard of them.

        Raises:
            ConfigError: If the run does not belong in this pack or no slot is free.
            CheckpointError: If the folder holds another run's checkpoints.
        """
        if pack_key(config) != self._key:
            raise ConfigError(f"trial {trial}: differs from this pack in more than a slot may differ")
        if self.free < 1:
            raise ConfigError(f"trial {trial}: all {self.slots} slots of the pack are taken")
        slot = _Slot(trial, config, folder, self._model.shapes(config.method))
        state = ranks.from_leader(lambda: newest_checkpoint(folder / "checkpoints", trial))
        if state is None:
            tensors = {f"value/{name}": tensor for name, tensor in self._model.initial(config).items()}
        else:
            tensors = state.tensors
            slot.step, slot.loss_sum, slot.loss_count = state.step, state.loss_sum, state.loss_count
            slot.reports = [report for report in state.reports if report[0] > recorded]
            _check_shapes(tensors, slot.shapes, folder)
        self._resize([*self._occupied, slot])
        row = len(self._occupied)
        for part in self._parts:
            self._layout.write(self._rows[part][row], _part_of(tensors, part))
        if self._engine.zero:
            slot.sharded = self._sharded(slot, tensors)
        self._occupied.append(slot)
        self._make_leaves()
        return [Reported(trial, step, metrics) for step, metrics in slot.reports]

    def withdraw(self, trial: str) -> None:
        """Stops a trial without a result; its slot is free at once and its checkpoints stay."""
        self._remove(self._find(trial))

    def checkpoint(self, trial: str) -> Checkpointed:
        """Writes the trial's state now, whatever its `checkpoint_every`."""
        return self._write_checkpoint(self._find(trial))

    def step(self) -> list[Event]:
        """One optimizer step of every occupied slot; reports, checkpoints and endings that follow from it."""
        if not self._occupied:
            return []
        losses = self._backward()
        self._model.adaptation.settle()
        self._collect_gradients()
        self._update()
        events: list[Event] = []
        failed: list[_Slot] = []
        for slot, loss in zip(self._occupied, losses, strict=True):
            slot.step += 1
            slot.loss_sum += loss
            slot.loss_count += 1
            if not math.isfinite(loss):
                failed.append(slot)
                events.append(Failed(slot.trial, slot.step, "diverged", f"training loss became {loss}"))
        for slot in failed:
            self._remove(slot)
        return events + self._report() + self._save_due()

    def _backward(self) -> list[float]:
        """This rank's part of the gradients of the mean loss of each slot's batch; returns the losses."""
        micro = self._micro_batch
        passes = self._occupied[0].config.train.batch // micro
        self._model.adaptation.prepare(self._leaves, [slot.config.method for slot in self._occupied])
        total = torch.zeros(len(self._occupied), dtype=torch.float64, device=self._model.device)
        for index in range(ranks.index(), passes, ranks.count()):
            generators = [
                pass_generator(slot.config.seed, slot.step, index, self._model.device)
                for slot in self._occupied
            ]
            self._model.adaptation.drop_with(generators)
            batch = self._training_batch(index * micro, micro, generators)
            loss = self._task.loss(self._model.forward(batch, self._leaves), batch) / passes
            loss.sum().backward()
            total += loss.detach()
        return ranks.total(total).tolist()

    def _training_batch(
        self, offset: int, count: int, generators: Sequence[torch.Generator]
    ) -> dict[str, Tensor]:
        """Each slot's own next examples, `[K, B, ...]`."""
        parts = []
        for slot, generator in zip(self._occupied, generators, strict=True):
            start = slot.step * slot.config.train.batch + offset
            indices = example_indices(slot.config.seed, len(self._train_split), start, count)
            parts.append(self._train_split.take(indices, generator))
        return {name: torch.stack([part[name] for part in parts]) for name in parts[0]}

    def _collect_gradients(self) -> None:
        """Moves the leaves' gradients into the gradient matrix."""
        for name, view in self._layout.views(self._rows["grad"][: len(self._occupied)]).items():
            leaf = self._leaves[name]
            assert leaf.grad is not None, f"{name} got no gradient"
            view.copy_(leaf.grad)
            leaf.grad = None

    def _update(self) -> None:
        if self._engine.zero:
            self._update_sharded()
            return
        ranks.total(self._rows["grad"][: len(self._occupied)])
        count = len(self._occupied)
        rows = {part: matrix[:count] for part, matrix in self._rows.items()}
        optims = [in_force(slot.config.optim, slot.step) for slot in self._occupied]
        clip_rows(rows["grad"], [optim.clip_norm for optim in optims])
        counts = [slot.step + 1 for slot in self._occupied]
        adamw_step(
            rows["value"], rows["grad"], (rows["first"], rows["second"]), optims, counts, self._rates()
        )

    def _update_sharded(self) -> None:
        """Each slot's update by its own DeepSpeed engine."""
        for row, (slot, rate) in enumerate(zip(self._occupied, self._rates(), strict=True)):
            own, gradient = slot.layout, self._own_row("grad", row, slot)
            assert slot.sharded is not None
            values = slot.sharded.update(gradient, rate, in_force(slot.config.optim, slot.step))
            self._layout.write(self._rows["value"][row], own.read(values, slot.shapes))

    def _own_row(self, part: str, row: int, slot: _Slot) -> Tensor:
        """A slot's own numbers of a row, `[P]` without padding."""
        own = torch.zeros(slot.layout.width, dtype=self._model.dtype, device=self._model.device)
        slot.layout.write(own, self._layout.read(self._rows[part][row], slot.shapes))
        return own

    def _sharded(self, slot: _Slot, tensors: Mapping[str, Tensor]) -> ShardedSlot:
        from replora.train.engine import ShardedSlot

        rows = torch.zeros(3, slot.layout.width, dtype=self._model.dtype, device=self._model.device)
        for row, part in zip(rows, ("value", "first", "second"), strict=True):
            slot.layout.write(row, _part_of(tensors, part))
        return ShardedSlot(slot.config, rows[0], (rows[1], rows[2]), slot.step)

    def _check_shares(self, config: RunConfig) -> None:
        """Refuses what the ranks of this process's gang cannot share evenly."""
        ranks.check_count(config.engine.ranks)
        if config.train.batch % (self._micro_batch * ranks.count()):
            raise ConfigError(
                f"engine.ranks times the micro-batch must divide train.batch, but got {ranks.count()} times "
                f"{self._micro_batch} and {config.train.batch}. Set train.micro_batch."
            )

    def _rates(self) -> list[float]:
        return [
            learning_rate(slot.config.optim, slot.step, slot.config.train.steps) for slot in self._occupied
        ]

    def _report(self) -> list[Event]:
        """Evaluates the slots whose turn it is, together; ends those that are done or not finite."""
        due = [slot for slot in self._occupied if _is_due(slot)]
        if not due:
            return []
        events: list[Event] = []
        for slot, scores in zip(due, self._evaluate(due, "val"), strict=True):
            metrics = self._metrics(slot, scores)
            bad = [name for name, value in metrics.items() if not math.isfinite(value)]
            if bad:
                reason = f"{', '.join(bad)} not finite at the evaluation"
                events.append(Failed(slot.trial, slot.step, "diverged", reason))
                self._remove(slot)
                continue
            slot.reports.append((slot.step, metrics))
            events.append(Reported(slot.trial, slot.step, metrics))
            if slot.step >= slot.config.train.steps:
                self._save_adapter(slot)
                events.append(Finished(slot.trial, slot.step, metrics, str(slot.folder / "adapter")))
                self._remove(slot)
        return events

    def _metrics(self, slot: _Slot, scores: Mapping[str, float]) -> dict[str, float]:
        now = time.perf_counter()
        metrics = {"val_loss" if name == "loss" else name: value for name, value in scores.items()}
        metrics["train_loss"] = slot.loss_sum / slot.loss_count
        metrics["lr"] = learning_rate(slot.config.optim, slot.step - 1, slot.config.train.steps)
        metrics["seconds"] = now - slot.since
        slot.loss_sum, slot.loss_count = 0.0, 0
        return metrics

    def _evaluate(self, slots: Sequence[_Slot], split: SplitName) -> list[dict[str, float]]:
        """Metrics of some slots on a whole split."""
        index = torch.tensor([self._occupied.index(slot) for slot in slots], device=self._model.device)
        parameters = self._layout.views(self._rows["value"].index_select(0, index))
        return self._model.evaluate(parameters, [slot.config.method for slot in slots], split)

    def _save_due(self) -> list[Event]:
        return [
            self._write_checkpoint(slot)
            for slot in self._occupied
            if slot.step % slot.config.train.checkpoint_every == 0
        ]

    def _write_checkpoint(self, slot: _Slot) -> Checkpointed:
        row = self._occupied.index(slot)
        parts = {part: self._layout.read(self._rows[part][row], slot.shapes) for part in self._parts}
        if slot.sharded is not None:
            first, second = slot.sharded.moments()
            parts["first"] = slot.layout.read(first, slot.shapes)
            parts["second"] = slot.layout.read(second, slot.shapes)
        tensors = {f"{part}/{name}": each for part, read in parts.items() for name, each in read.items()}
        reports = tuple(slot.reports)
        state = SlotState(slot.trial, slot.step, slot.loss_sum, slot.loss_count, tensors, reports)
        path = ranks.from_leader(lambda: write_checkpoint(slot.folder / "checkpoints", state))
        return Checkpointed(slot.trial, slot.step, str(path))

    def _save_adapter(self, slot: _Slot) -> None:
        row = self._rows["value"][self._occupied.index(slot)]
        tensors = self._layout.read(row, slot.shapes)
        width = self._task.head_width
        saved = SavedAdapter(slot.config, self._backbone.fingerprint, width, tensors)
        ranks.from_leader(lambda: save_adapter(slot.folder / "adapter", saved))

    def _find(self, trial: str) -> _Slot:
        for slot in self._occupied:
            if slot.trial == trial:
                return slot
        raise ConfigError(f"trial {trial} is not in this pack; it holds {', '.join(self.trials) or 'none'}")

    def _remove(self, slot: _Slot) -> None:
        """Frees the slot: the last row moves into its place."""
        if slot.sharded is not None:
            slot.sharded.close()
        row, last = self._occupied.index(slot), len(self._occupied) - 1
        for matrix in self._rows.values():
            matrix[row].copy_(matrix[last])
        self._occupied[row] = self._occupied[last]
        self._occupied.pop()
        self._resize(self._occupied)
        self._make_leaves()

    def _resize(self, slots: Sequence[_Slot]) -> None:
        """Fits the padding to the slots that are there; rows of occupied slots are carried over."""
        if not slots:
            return
        layout = Layout(self._model.shapes(cover([slot.config.method for slot in slots])))
        if layout == self._layout:
            return
        before, self._layout = self._layout, layout
        old_rows, self._rows = self._rows, self._new_rows(layout.width)
        for part in self._parts:
            for index, slot in enumerate(self._occupied):
                layout.write(self._rows[part][index], before.read(old_rows[part][index], slot.shapes))

    def _new_rows(self, width: int) -> dict[str, Tensor]:
        return {
            part: torch.zeros(self.slots, width, dtype=self._model.dtype, device=self._model.device)
            for part in (*self._parts, "grad")
        }

    def _make_leaves(self) -> None:
        """Leaves `[K, *shape]` over the occupied rows."""
        rows = self._rows["value"][: len(self._occupied)]
        self._leaves = {
            name: view.detach().requires_grad_() for name, view in self._layout.views(rows).items()
        }


def _is_due(slot: _Slot) -> bool:
    """Whether the slot is evaluated after the step that it has just taken."""
    train = slot.config.train
    return slot.step % train.eval_every == 0 or slot.step >= train.steps


def _part_of(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint whose names begin with `part/`, without that."""
    return {n.split("/", 1)[1]: t for n, t in tensors.items() if n.startswith(f"{part}/")}


def _check_shapes(tensors: Mapping[str, Tensor], shapes: Shapes, folder: Path) -> None:
    for name, shape in shapes.items():
        for part in ("value", "first", "second"):
            found = tensors.get(f"{part}/{name}")
            if found is None or tuple(found.shape) != shape:
                got = "nothing" if found is None else list(found.shape)
                raise CheckpointError(f"{folder}: checkpoint has {got} for {part}/{name}, not {list(shape)}")
