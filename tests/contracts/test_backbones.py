"""What every method with sizes promises, on every kind of backbone: fused, functional, split projections."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from replora.config import (
    BackboneConfig,
    MethodConfig,
    OptimConfig,
    PrefixMethod,
    RunConfig,
    TextToTextTask,
    TrainConfig,
)
from replora.methods.bake import merge
from replora.methods.folder import SavedAdapter, load_adapter
from replora.models.base import Backbone
from replora.models.load import load_backbone
from replora.parameters import trainable_parameters
from replora.tasks.base import Task
from replora.tasks.classification import Classification
from replora.tasks.load import load_task
from replora.train.model import SlotModel
from replora.train.pack import Pack
from tests.contracts.packs import (
    LOW_RANK,
    METHODS,
    SIZED,
    as_pack,
    losses_of_first,
    neighbour,
    outputs,
    perturbed,
    relative_gap,
)
from tests.replora.tiny_bart import FEATURES, save_pairs, save_tiny_bart

AT_BASE = {name: method for name, method in SIZED.items() if not isinstance(method, PrefixMethod)}
low_rank = pytest.mark.parametrize("method", LOW_RANK.values(), ids=LOW_RANK.keys())
sized = pytest.mark.parametrize("method", SIZED.values(), ids=SIZED.keys())
at_base = pytest.mark.parametrize("method", AT_BASE.values(), ids=AT_BASE.keys())


Base = tuple[Backbone, Task]


class Clips:
    """Random clips and labels."""

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._clips = torch.randn(count, 3, 4, 32, 24, generator=generator, dtype=torch.float64)
        self._labels = torch.randint(3, (count,), generator=generator)

    def __len__(self) -> int:
        return len(self._labels)

    def take(self, indices: Tensor, generator: torch.Generator | None) -> dict[str, Tensor]:
        """The clips as they are."""
        return {"video": self._clips[indices], "label": self._labels[indices]}


def video_swin(folder: Path) -> Base:
    config = BackboneConfig(name="video-swin-nano", weights="random")
    backbone = load_backbone(config, precision="fp64", device="cpu")
    splits = {"train": Clips(8, 0), "val": Clips(3, 1), "test": Clips(3, 2)}
    return backbone, Classification(splits, ("a", "b", "c"), "made", 3)  # type: ignore[arg-type]


def bart(folder: Path) -> Base:
    return _bart(folder, visual=False)


def vl_bart(folder: Path) -> Base:
    return _bart(folder, visual=True)


def _bart(folder: Path, *, visual: bool) -> Base:
    """A tiny BART, alone or with pictures; its biases and its visual embedding train beside a method."""
    saved = save_tiny_bart(folder / "bart", visual_features=FEATURES if visual else 0)
    backbone = load_backbone(BackboneConfig(name=f"hf/{saved}"), precision="fp64", device="cpu")
    task = TextToTextTask(
        root=save_pairs(folder / "data", visual=visual),
        source_tokens=24,
        target_tokens=6,
        visual_tokens=6 if visual else 0,
    )
    return backbone, load_task(task, precision="fp64", device="cpu", processor=backbone.processor)


KINDS: dict[str, Callable[[Path], Base]] = {"video-swin": video_swin, "bart": bart, "vl-bart": vl_bart}


@pytest.fixture(scope="module", params=KINDS)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    """Backbone and task of a kind; nothing may change either of them."""
    return KINDS[request.param](tmp_path_factory.mktemp(request.param))


def run(method: MethodConfig, *, seed: int = 0, steps: int = 6, lr: float = 1e-3) -> RunConfig:
    """A short run in fp64; the backbone and the task that it names are not looked at."""
    train = TrainConfig(steps=steps, batch=2, eval_every=steps, checkpoint_every=1000, precision="fp64")
    return RunConfig(method=method, optim=OptimConfig(lr=lr, weight_decay=1e-2), train=train, seed=seed)


def batch_of(task: Task) -> dict[str, Tensor]:
    """A batch of a pack of one."""
    return as_pack(task.split("val").take(torch.arange(2), None))


def features(backbone: Backbone, model: torch.nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return backbone.features(model, {name: each[0] for name, each in batch.items()})


def adapted(
    model: SlotModel, config: RunConfig, tensors: dict[str, Tensor], batch: dict[str, Tensor]
) -> Tensor:
    """Features with an adapter, without the head."""
    model.adaptation.prepare(model.one(tensors, config.method), [config.method])
    with torch.no_grad():
        return model.adaptation.features(batch)[0]


@at_base
def test_update_is_zero_at_the_start(base: Base, method: MethodConfig) -> None:
    backbone, task = base
    config, batch = run(method), batch_of(task)
    model = SlotModel(backbone, task, config)
    plain = features(backbone, backbone.model, batch)
    found = adapted(model, config, model.initial(config), batch)
    torch.testing.assert_close(found, plain, rtol=1e-12, atol=1e-12)


@sized
def test_every_tensor_changes_the_output_and_gets_a_gradient(base: Base, method: MethodConfig) -> None:
    backbone, task = base
    config, batch = run(method), batch_of(task)
    model = SlotModel(backbone, task, config)
    moved, nudges = perturbed(model, config), perturbed(model, config, seed=2)
    before = outputs(model, config, moved, batch)
    # A bias of the keys adds the same to all scores of a query, which the softmax takes away.
    for name in (name for name in moved if not name.endswith("k_proj.bias")):
        after = outputs(model, config, {**moved, name: nudges[name]}, batch)
        assert (after - before).abs().max() > 1e-8 * before.abs().max(), f"{name} is not heard"
    leaves = {name: each.detach().requires_grad_() for name, each in model.one(moved, method).items()}
    model.adaptation.prepare(leaves, [method])
    task.loss(model.forward(batch, leaves), batch).sum().backward()
    model.adaptation.settle()
    assert [name for name, leaf in leaves.items() if leaf.grad is None or not leaf.grad.any()] == []


@sized
def test_gradients_are_those_of_autograd(base: Base, method: MethodConfig) -> None:
    backbone, task = base
    still = {"dropout": 0.0} if hasattr(method, "dropout") else {}
    config, batch = run(method.model_copy(update=still)), batch_of(task)
    model = SlotModel(backbone, task, config)
    moved, towards = perturbed(model, config), perturbed(model, config, seed=3)
    leaves = {name: each.detach().requires_grad_() for name, each in model.one(moved, method).items()}

    def loss(tensors: dict[str, Tensor]) -> Tensor:
        model.adaptation.prepare(tensors, [config.method])
        return task.loss(model.forward(batch, tensors), batch).sum()

    loss(leaves).backward()
    model.adaptation.settle()
    step = model.one(towards, method)
    # A decomposed update's norm is a constant in the gradient: only its magnitudes can be compared.
    names = [
        n for n in leaves if getattr(method, "composition", "additive") == "additive" or "magnitude" in n
    ]
    slope = sum(float((leaves[name].grad * step[name]).sum()) for name in names)  # type: ignore[operator,misc]
    with torch.no_grad():
        ends = [
            float(
                loss({n: leaf + sign * 1e-5 * step[n] if n in names else leaf for n, leaf in leaves.items()})
            )
            for sign in (1.0, -1.0)
        ]
    assert slope == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4)


@sized
def test_training_changes_the_adapter_and_no_bit_of_the_base(
    base: Base, method: MethodConfig, tmp_path: Path
) -> None:
    backbone, task = base
    config = run(method, lr=1e-2)
    before = {name: each.clone() for name, each in backbone.model.state_dict().items()}
    pack = Pack(config, backbone, task, slots=1)
    pack.admit("t", config, tmp_path)
    while pack.trials:
        pack.step()
    after = backbone.model.state_dict()
    assert [name for name in before if not torch.equal(after[name], before[name])] == []
    saved = load_adapter(tmp_path / "adapter").tensors
    model = SlotModel(backbone, task, config)
    initial = model.initial(config)
    assert saved.keys() == initial.keys() == model.shapes(method).keys()
    assert [name for name in initial if torch.equal(saved[name], initial[name])] == []


@low_rank
def test_merged_weights_give_the_same_and_leave_the_base(base: Base, method: MethodConfig) -> None:
    backbone, task = base
    config, batch = run(method), batch_of(task)
    model = SlotModel(backbone, task, config)
    moved = perturbed(model, config)
    plain = features(backbone, backbone.model, batch)
    merged = merge(SavedAdapter(config, backbone.fingerprint, task.head_width, moved), backbone)
    expected = adapted(model, config, moved, batch)
    assert not torch.allclose(expected, plain, rtol=1e-3)
    torch.testing.assert_close(features(backbone, merged, batch), expected, rtol=1e-9, atol=1e-10)
    assert torch.equal(features(backbone, backbone.model, batch), plain)  # there is nothing to unmerge


@sized
def test_two_adapters_in_one_pack_do_not_see_each_other(base: Base, method: MethodConfig) -> None:
    backbone, task = base
    config, batch = run(method), batch_of(task)
    model = SlotModel(backbone, task, config)
    own = [model.one(perturbed(model, config, seed=seed), method) for seed in (1, 2)]
    alone = []
    for parameters in own:
        model.adaptation.prepare(parameters, [method])
        with torch.no_grad():
            alone.append(model.forward(batch, parameters)[0])
    both = {name: torch.cat([each[name] for each in own]) for name in own[0]}
    model.adaptation.prepare(both, [method] * 2)
    with torch.no_grad():
        packed = model.forward({name: each.expand(2, *each.shape[1:]) for name, each in batch.items()}, both)
    torch.testing.assert_close(packed, torch.stack(alone), rtol=1e-11, atol=1e-11)
    assert not torch.allclose(packed[0], packed[1])


@sized
def test_packed_equals_solo(base: Base, method: MethodConfig, tmp_path: Path) -> None:
    lr = 1e-2 if isinstance(method, PrefixMethod) else 1e-3  # a prefix is learned at higher rates
    first = run(method, steps=12, lr=lr)
    others = [
        run(neighbour(method, index), seed=index + 1, steps=steps) for index, steps in enumerate((12, 5))
    ]
    solo, _ = losses_of_first([first], tmp_path / "solo", base)
    packed, _ = losses_of_first([first, *others], tmp_path / "pack", base)
    assert relative_gap(packed, solo) <= 1e-10
    assert solo[-4:].mean() < solo[:4].mean()


@pytest.mark.parametrize("name", SIZED)
def test_count_without_torch_equals_what_a_slot_trains(base: Base, name: str) -> None:
    backbone, task = base
    method = METHODS[name]
    shapes = SlotModel(backbone, task, run(method)).adaptation.shapes(method)
    own = {n: math.prod(shape) for n, shape in shapes.items() if not n.startswith("beside.")}
    assert trainable_parameters(method, backbone.targets, 0) == sum(own.values())
