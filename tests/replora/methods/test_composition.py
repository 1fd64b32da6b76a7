"""Weight-decomposed and noised updates: gains, where they start, their limit and their gradients."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from replora.config import DoraMethod, DoranMethod, ReploraMethod, RunConfig
from replora.methods.bake import bake, merge
from replora.methods.folder import SavedAdapter
from replora.models.base import Backbone
from replora.train.model import SlotModel
from tests.contracts.packs import base, run

METHODS: dict[str, DoraMethod | DoranMethod | ReploraMethod] = {
    "dora": DoraMethod(rank=4, alpha=6.0, targets=("query", "value", "down")),
    "dora-noised": DoraMethod(rank=4, composition="noised"),
    "doran": DoranMethod(rank=4, hidden=8, tau=0.3),
    "replora-decomposed": ReploraMethod(
        rank=4, hidden=8, composition="weight-decomposed", plain_targets=("up",)
    ),
    "replora-noised-model": ReploraMethod(rank=4, hidden=8, composition="noised", scope="model"),
}
methods = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())


Composed = DoraMethod | DoranMethod | ReploraMethod
Built = tuple[RunConfig, Backbone, SlotModel, dict[str, Tensor]]


def built(method: Composed, precision: str = "fp64") -> Built:
    config = run(method, precision=precision)
    backbone, task = base(config)
    batch = {name: each.unsqueeze(0) for name, each in task.split("val").take(torch.arange(6), None).items()}
    return config, backbone, SlotModel(backbone, task, config), batch


def moved(model: SlotModel, config: RunConfig) -> dict[str, Tensor]:
    """The start with every tensor moved, as one slot's tensors."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: each + 0.1 * torch.randn(each.shape, generator=generator, dtype=each.dtype)
        for name, each in model.initial(config).items()
    }


def features(
    model: SlotModel, method: Composed, tensors: Mapping[str, Tensor], batch: Mapping[str, Tensor]
) -> Tensor:
    model.adaptation.prepare(model.one(tensors, method), [method])
    with torch.no_grad():
        return model.adaptation.features(batch)[0]


@methods
@pytest.mark.parametrize("precision", ["fp32", "fp64"])
def test_every_gain_is_exactly_1_at_the_start(method: Composed, precision: str) -> None:
    config, backbone, model, _ = built(method, precision)
    tensors = {name: each.to(model.dtype) for name, each in model.initial(config).items()}
    gains = [t.gain for t in bake(SavedAdapter(config, backbone.fingerprint, 5, tensors), backbone)]
    assert all(torch.equal(gain, torch.ones_like(gain)) for gain in gains if gain is not None)
    assert any(gain is not None for gain in gains)


@methods
def test_features_are_the_bases_at_the_start(method: Composed) -> None:
    config, backbone, model, batch = built(method)
    plain = backbone.features(backbone.model, {name: each[0] for name, each in batch.items()})
    adapted = features(model, method, model.initial(config), batch)
    torch.testing.assert_close(adapted, plain, rtol=1e-12, atol=1e-12)


@methods
def test_merge_equals_forward(method: Composed) -> None:
    config, backbone, model, batch = built(method)
    tensors = moved(model, config)
    merged = merge(SavedAdapter(config, backbone.fingerprint, 5, tensors), backbone)
    expected = backbone.features(merged, {name: each[0] for name, each in batch.items()})
    torch.testing.assert_close(features(model, method, tensors, batch), expected, rtol=1e-10, atol=1e-10)


@methods
def test_norm_by_expansion_equals_the_norm_of_the_whole_weight(method: Composed) -> None:
    config, backbone, model, _ = built(method)
    adapter = SavedAdapter(config, backbone.fingerprint, 5, moved(model, config))
    decomposed = [target for target in bake(adapter, backbone) if target.gain is not None]
    assert decomposed
    blocks = {target.module: target.block for target in backbone.targets}
    for target in decomposed:
        assert target.gain is not None
        low, high = target.rows
        weight = backbone.model.get_parameter(f"{target.module}.weight")[low:high]
        norm = (weight + target.scale * target.b @ target.a).norm(dim=1)
        block = blocks[target.module]
        if method.composition == "noised":
            norm = norm + torch.nn.functional.softplus(adapter.tensors[f"{target.name}.noise"][block])
        magnitude = adapter.tensors[f"{target.name}.magnitude"][block]
        torch.testing.assert_close(target.gain, magnitude / norm, rtol=1e-12, atol=1e-12)


@methods
def test_gradients_of_magnitudes_and_noise_are_finite_differences(method: Composed) -> None:
    config, _, model, batch = built(method)
    tensors = moved(model, config)
    leaves = {n: t.detach().clone().requires_grad_() for n, t in model.one(tensors, method).items()}
    model.adaptation.prepare(leaves, [method])
    model.adaptation.features(batch).square().sum().backward()
    model.adaptation.settle()
    step = 1e-6
    for name in [n for n in leaves if n.endswith((".magnitude", ".noise"))]:
        pieces = []
        for sign in (1, -1):
            shifted = {**tensors, name: tensors[name] + sign * step}
            pieces.append(features(model, method, shifted, batch).square().sum())
        expected = (pieces[0] - pieces[1]) / (2 * step)
        grad = leaves[name].grad
        assert grad is not None
        assert grad.sum().item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)


def test_dora_is_the_limit_of_no_noise() -> None:
    noised = DoraMethod(rank=4, composition="noised", tau=1e-9)
    plain = DoraMethod(rank=4)
    config, _, model, batch = built(noised)
    tensors = moved(model, config)
    tensors = {n: model.initial(config)[n] if n.endswith(".noise") else t for n, t in tensors.items()}
    _, _, other, _ = built(plain)
    without = {name: each for name, each in tensors.items() if not name.endswith(".noise")}
    expected = features(other, plain, without, batch)
    torch.testing.assert_close(features(model, noised, tensors, batch), expected, rtol=1e-6, atol=1e-6)


def test_a_magnitude_of_zero_gives_finite_gradients() -> None:
    method = METHODS["dora"]
    config, _, model, batch = built(method)
    tensors = moved(model, config)
    tensors["down.magnitude"][:, 0] = 0
    leaves = {n: t.detach().clone().requires_grad_() for n, t in model.one(tensors, method).items()}
    model.adaptation.prepare(leaves, [method])
    model.adaptation.features(batch).square().sum().backward()
    model.adaptation.settle()
    grads = [leaf.grad for name, leaf in leaves.items() if "head" not in name]
    assert all(grad is not None and bool(grad.isfinite().all()) for grad in grads)
