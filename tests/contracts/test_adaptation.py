"""What every method promises: it starts at the base, leaves the base alone and trains all of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from replora.config import ComposedMethod, MethodConfig, PrefixMethod, RunConfig
from replora.methods.bake import merge
from replora.methods.folder import SavedAdapter, load_adapter
from replora.methods.layout import Layout, cover
from replora.models.base import Backbone
from replora.tasks.base import Task
from replora.train.model import SlotModel
from replora.train.pack import Pack
from tests.contracts.packs import LOW_RANK, METHODS, SIZED, as_pack, base, neighbour, outputs, perturbed, run

#: Those that start at the base; a prefix takes a part of every query's attention from the start.
AT_BASE = {name: method for name, method in METHODS.items() if not isinstance(method, PrefixMethod)}
#: Those that compute the base's outputs as the base does; a gain on the outputs has the bias added after it.
ADDITIVE = {
    name: method
    for name, method in AT_BASE.items()
    if not isinstance(method, ComposedMethod) or method.composition == "additive"
}
methods = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
low_rank = pytest.mark.parametrize("method", LOW_RANK.values(), ids=LOW_RANK.keys())
at_base = pytest.mark.parametrize("method", AT_BASE.values(), ids=AT_BASE.keys())
sized = pytest.mark.parametrize("method", SIZED.values(), ids=SIZED.keys())
additive = pytest.mark.parametrize("method", ADDITIVE.values(), ids=ADDITIVE.keys())


def images(task: Task) -> dict[str, Tensor]:
    """A batch of a pack of one."""
    return as_pack(task.split("val").take(torch.arange(6), None))


def start(config: RunConfig) -> tuple[Tensor, Backbone, dict[str, Tensor]]:
    """Features of a run's first step, with the base and the batch that they are of."""
    backbone, task = base(config)
    model, batch = SlotModel(backbone, task, config), images(task)
    model.adaptation.prepare(model.one(model.initial(config), config.method), [config.method])
    with torch.no_grad():
        return model.adaptation.features(batch), backbone, batch


def gradients(config: RunConfig) -> tuple[SlotModel, dict[str, Tensor | None]]:
    """Gradients `[1, *padded shape]` of every tensor, away from the start."""
    backbone, task = base(config)
    model, batch = SlotModel(backbone, task, config), images(task)
    parameters = model.one(perturbed(model, config), config.method)
    leaves = {name: each.detach().requires_grad_() for name, each in parameters.items()}
    model.adaptation.prepare(leaves, [config.method])
    task.loss(model.forward(batch, leaves), batch).sum().backward()
    model.adaptation.settle()
    return model, {name: leaf.grad for name, leaf in leaves.items()}


@additive
def test_update_is_zero_to_the_bit_at_the_start(method: MethodConfig) -> None:
    features, backbone, batch = start(run(method))
    plain = backbone.features(backbone.model, {name: each[0] for name, each in batch.items()})
    assert torch.equal(features[0], plain)


@at_base
@pytest.mark.parametrize(("precision", "tolerance"), [("fp64", 1e-13), ("fp32", 1e-6)])
def test_update_is_zero_at_the_start(method: MethodConfig, precision: str, tolerance: float) -> None:
    features, backbone, batch = start(run(method, precision=precision))
    plain = backbone.features(backbone.model, {name: each[0] for name, each in batch.items()})
    assert (features[0] - plain).abs().max() <= tolerance * plain.abs().max()


@pytest.mark.parametrize("deviation", [1.0, 1e-12])
def test_a_prefix_does_not_start_at_the_base(deviation: float) -> None:
    features, backbone, batch = start(run(PrefixMethod(tokens=3, deviation=deviation)))
    plain = backbone.features(backbone.model, {name: each[0] for name, each in batch.items()})
    assert (features[0] - plain).abs().max() > 1e-2 * plain.abs().max()


@methods
def test_training_changes_all_of_the_adapter_and_no_bit_of_the_base(
    method: MethodConfig, tmp_path: Path
) -> None:
    config = run(method, lr=1e-2, steps=5)
    backbone, task = base(config)
    before = {name: each.clone() for name, each in backbone.model.state_dict().items()}
    pack = Pack(config, backbone, task, slots=1)
    pack.admit("t", config, tmp_path)
    while pack.trials:
        pack.step()
    after = backbone.model.state_dict()
    assert after.keys() == before.keys()
    assert [name for name in before if not torch.equal(after[name], before[name])] == []
    assert [n for n, p in backbone.model.named_parameters() if p.requires_grad or p.grad is not None] == []
    saved, initial = (
        load_adapter(tmp_path / "adapter").tensors,
        SlotModel(backbone, task, config).initial(config),
    )
    assert saved.keys() == initial.keys()
    assert [name for name in initial if torch.equal(saved[name], initial[name])] == []


@methods
def test_every_tensor_changes_the_output(method: MethodConfig) -> None:
    config = run(method)
    backbone, task = base(config)
    model, batch = SlotModel(backbone, task, config), images(task)
    moved = perturbed(model, config)
    nudges = perturbed(model, config, seed=2)  # a shift alike in all places would be lost in a layer norm
    before = outputs(model, config, moved, batch)
    for name in moved:
        after = outputs(model, config, {**moved, name: nudges[name]}, batch)
        assert (after - before).abs().max() > 1e-6 * before.abs().max(), f"{name} is not heard"


@methods
def test_every_tensor_gets_a_gradient(method: MethodConfig) -> None:
    model, found = gradients(run(method))
    assert found.keys() == model.shapes(method).keys()
    assert [name for name, grad in found.items() if grad is None or not grad.any()] == []


@methods
def test_padding_gets_no_gradient(method: MethodConfig) -> None:
    model, found = gradients(run(method))
    for name, shape in model.shapes(method).items():
        grad = found[name]
        assert grad is not None
        grad[0][tuple(slice(0, size) for size in shape)] = 0.0
        assert not grad.any(), f"{name}: a gradient beyond {shape}"


@low_rank
def test_two_adapters_on_one_base_do_not_see_each_other(method: MethodConfig) -> None:
    config = run(method)
    backbone, task = base(config)
    first, second, batch = SlotModel(backbone, task, config), SlotModel(backbone, task, config), images(task)
    mine, theirs = perturbed(first, config), perturbed(second, config, seed=2)
    before = outputs(first, config, mine, batch)
    other = outputs(second, config, theirs, batch)
    with torch.no_grad():
        again = first.forward(batch, first.one(mine, method))[0]  # bound before the second was prepared
    assert torch.equal(again, before)
    assert not torch.allclose(other, before)


@low_rank
def test_dropping_a_merged_copy_leaves_every_bit_of_the_base(method: MethodConfig) -> None:
    config = run(method)
    backbone, task = base(config)
    before = {name: each.clone() for name, each in backbone.model.state_dict().items()}
    moved = perturbed(SlotModel(backbone, task, config), config)
    merged = merge(SavedAdapter(config, backbone.fingerprint, task.head_width, moved), backbone)
    after = backbone.model.state_dict()
    assert all(torch.equal(after[name], each) for name, each in before.items())
    assert not all(torch.equal(each, before[name]) for name, each in merged.state_dict().items())


@sized
def test_padding_changes_no_output(method: MethodConfig) -> None:
    config = run(method)
    backbone, task = base(config)
    model, batch = SlotModel(backbone, task, config), images(task)
    moved = perturbed(model, config)
    layout = Layout(model.shapes(cover([method, neighbour(method, 2)])))  # as beside a slot of rank 20
    matrix = torch.zeros(1, layout.width, dtype=torch.float64)
    layout.write(matrix[0], moved)
    model.adaptation.prepare(layout.views(matrix), [method])
    with torch.no_grad():
        padded = model.forward(batch, layout.views(matrix))[0]
    torch.testing.assert_close(padded, outputs(model, config, moved, batch), rtol=1e-11, atol=1e-11)
