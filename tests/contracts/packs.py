"""Shared pieces of the contract suites: methods, small packs, and recorded losses of a trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from replora.config import (
    AdapterMethod,
    DoraMethod,
    DoranMethod,
    FullMethod,
    HoraMethod,
    LinearProbeMethod,
    LoraMethod,
    LowRankMethod,
    MethodConfig,
    OptimConfig,
    PrefixMethod,
    ReploraMethod,
    RunConfig,
    TrainConfig,
)
from replora.methods.layout import cover
from replora.models.base import Backbone
from replora.models.load import load_backbone
from replora.tasks.base import Batch, Direction, Forward, Split, SplitName, Task
from replora.tasks.load import load_task
from replora.train.events import Event, Finished
from replora.train.model import SlotModel
from replora.train.pack import Pack

#: Every method with a middling structure; the contract suites run each of them.
METHODS: dict[str, MethodConfig] = {
    "lora": LoraMethod(rank=4),
    "replora": ReploraMethod(rank=4, hidden=8),
    "replora-unshared": ReploraMethod(rank=4, hidden=8, shared=False),
    "replora-dense": ReploraMethod(rank=4, hidden=8, seed="dense", activation="tanh"),
    "replora-relu": ReploraMethod(rank=4, hidden=24, activation="relu", targets=("value", "down")),
    "replora-identity": ReploraMethod(rank=4, hidden=8, activation="identity", targets=("query", "output")),
    "replora-model": ReploraMethod(rank=4, hidden=8, scope="model"),
    "replora-zero-a": ReploraMethod(rank=4, hidden=8, zero_side="A"),
    "replora-plain-key": ReploraMethod(rank=4, hidden=8, plain_targets=("key", "up")),
    "replora-dropout": ReploraMethod(rank=4, hidden=8, dropout=0.1),
    "replora-decomposed": ReploraMethod(
        rank=4, hidden=8, composition="weight-decomposed", plain_targets=("key",)
    ),
    "replora-noised-model": ReploraMethod(rank=4, hidden=8, composition="noised", scope="model"),
    "dora": DoraMethod(rank=4, targets=("query", "value", "down")),
    "dora-dropout": DoraMethod(rank=4, dropout=0.1),
    "doran": DoranMethod(rank=4, hidden=8),
    "hora": HoraMethod(rank=4, hidden=8),
    "hora-unshared": HoraMethod(rank=4, hidden=8, shared=False, seed="diagonal", targets=("key", "value")),
    "hora-model": HoraMethod(rank=4, hidden=8, scope="model", zero_side="A", plain_targets=("up",)),
    "hora-noised": HoraMethod(rank=4, hidden=8, composition="noised"),
    "adapter": AdapterMethod(bottleneck=5, targets=("output", "down")),
    "adapter-slices": AdapterMethod(bottleneck=5, targets=("query", "value"), activation="gelu", scale=2.0),
    "adapter-parallel": AdapterMethod(bottleneck=5, form="parallel", targets=("value", "up"), bias=True),
    "adapter-dropout": AdapterMethod(bottleneck=5, dropout=0.1, activation="relu"),
    "prefix": PrefixMethod(tokens=3),
    "prefix-mlp": PrefixMethod(tokens=3, made="mlp", hidden=7),
    "full": FullMethod(),
    "linear-probe": LinearProbeMethod(),
}

LOW_RANK = {name: method for name, method in METHODS.items() if isinstance(method, LowRankMethod)}
#: Those whose slots can differ in a size, and are padded then.
SIZED = {name: method for name, method in METHODS.items() if cover([method]) != method}


def run(
    method: MethodConfig, *, lr: float = 1e-3, seed: int = 0, steps: int = 30, **train: object
) -> RunConfig:
    """A short run on the digits in fp64 unless told otherwise."""
    settings = {"precision": "fp64", "batch": 4, "eval_every": steps, "checkpoint_every": 1000, **train}
    return RunConfig(
        method=method,
        optim=OptimConfig(lr=lr, weight_decay=1e-2),
        train=TrainConfig.model_validate({"steps": steps, **settings}),
        seed=seed,
    )


def base(config: RunConfig) -> tuple[Backbone, Task]:
    """The run's backbone and task on the CPU."""
    precision = config.train.precision
    backbone = load_backbone(config.backbone, precision=precision, device="cpu")
    return backbone, load_task(config.task, precision=precision, device="cpu")


class RecordingTask:
    """A task that remembers each training loss `[K]`, in full precision."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self.head_width = task.head_width
        self.metric = task.metric
        self.direction: Direction = task.direction
        self.data_hash = task.data_hash
        self.losses: list[Tensor] = []

    def split(self, name: SplitName) -> Split:
        """The task's own split."""
        return self._task.split(name)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """The task's own loss, remembered."""
        loss = self._task.loss(output, batch)
        self.losses.append(loss.detach().to(torch.float64))
        return loss

    def evaluate(self, forward: Forward, slots: int, split: SplitName) -> list[dict[str, float]]:
        """The task's own metrics."""
        return self._task.evaluate(forward, slots, split)


def neighbour(method: MethodConfig, index: int) -> MethodConfig:
    """The same method with other sizes, where it has some; index 2 is padded further."""
    changes: dict[str, object] = {}
    for size in ("rank", "bottleneck", "tokens"):
        if hasattr(method, size):
            changes[size] = 2 + 9 * index
    for factor in ("alpha", "scale"):
        if hasattr(method, factor):
            changes[factor] = 4.0 + index
    if hasattr(method, "hidden"):
        changes["hidden"] = 6 + 17 * index
    return method.model_copy(update=changes)


def losses_of_first(
    trials: Sequence[RunConfig], folder: Path, base_and_task: tuple[Backbone, Task]
) -> tuple[Tensor, list[Event]]:
    """Trains a pack; the first trial's losses by step, and all events."""
    backbone, task = base_and_task
    recording = RecordingTask(task)
    pack = Pack(trials[0], backbone, recording, slots=len(trials))
    for index, config in enumerate(trials):
        pack.admit(f"trial-{index}", config, folder / f"trial-{index}")
    losses, events = [], []
    while "trial-0" in pack.trials:
        row = pack.trials.index("trial-0")
        events += pack.step()
        losses.append(recording.losses[-1][row])
    return torch.stack(losses), events


def as_pack(batch: Batch) -> dict[str, Tensor]:
    """A batch as a pack of one sees it."""
    return {name: each.unsqueeze(0) for name, each in batch.items()}


def perturbed(model: SlotModel, config: RunConfig, seed: int = 1) -> dict[str, Tensor]:
    """A start with every tensor moved away from it, as one slot's tensors."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: each + 0.1 * torch.randn(each.shape, generator=generator, dtype=each.dtype)
        for name, each in model.initial(config).items()
    }


def outputs(model: SlotModel, config: RunConfig, tensors: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """What a model gives for a batch of a pack of one, with one slot's tensors."""
    parameters = model.one(tensors, config.method)
    model.adaptation.prepare(parameters, [config.method])
    with torch.no_grad():
        return model.forward(batch, parameters)[0]


def relative_gap(ours: Tensor, theirs: Tensor) -> float:
    """Largest relative difference of two loss curves."""
    return float(((ours - theirs).abs() / theirs.abs()).max())


def final_metrics(events: Sequence[Event], trial: str) -> Mapping[str, float]:
    """Metrics with which a trial finished."""
    return next(e.metrics for e in events if isinstance(e, Finished) and e.trial == trial)
