"""Activations by formula equal the bytes that autograd saves on a CPU.

Measured: the blocks of a tiny LLaMA (transformers) and of a small ViT (timm) under this project's own
adapted layers, with fused attention as on a GPU. Not measured here: the logits, CUDA kernels (which
may save other statistics) and recomputation. The tolerances cover what the formula leaves out: tables
of positions, the last norm, and that the first block's input needs no gradient.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cluster.activations import activation_bytes
from cluster.anatomy import Anatomy, anatomy_of
from replora.config import (
    AdapterMethod,
    BackboneConfig,
    DoraMethod,
    FullMethod,
    LinearProbeMethod,
    LoraMethod,
    MethodConfig,
    PrefixMethod,
    ReploraMethod,
    RunConfig,
    TrainConfig,
)
from replora.models.base import Backbone
from replora.models.digits import build_digits_vit
from replora.models.timm_vit import timm_architecture
from replora.models.vision import vit_attend, vit_features, vit_targets
from replora.models.vit import unfuse_short_attention
from tests.cluster.anatomies import llama
from tests.cluster.saved import llama_backbone, saved_bytes

SIZES = (64, 176, 3, 4)
FIVE = ("query", "key", "value", "up", "down")
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def run(method: MethodConfig, precision: str = "fp32", backbone: str = "vit-digits") -> RunConfig:
    """A run of a method in a precision."""
    train = TrainConfig.model_validate({"precision": precision})
    return RunConfig(backbone=BackboneConfig(name=backbone), method=method, train=train)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("method", "tolerance"),
    [
        (LoraMethod(rank=4), 0.01),
        (LoraMethod(rank=4, targets=FIVE), 0.01),
        (LoraMethod(rank=4, targets=FIVE, dropout=0.1), 0.01),
        (DoraMethod(rank=4, targets=FIVE), 0.01),
        (DoraMethod(rank=4, targets=FIVE, dropout=0.1), 0.01),
        (ReploraMethod(rank=4, hidden=8, plain_targets=("up",)), 0.01),
        (AdapterMethod(bottleneck=8, targets=("down", "query")), 0.01),
        (AdapterMethod(bottleneck=8, targets=("up", "down"), form="parallel", activation="gelu"), 0.01),
        (AdapterMethod(bottleneck=8, dropout=0.1), 0.03),
        (PrefixMethod(tokens=16), 0.02),
        (PrefixMethod(tokens=16, made="mlp", hidden=8), 0.02),
    ],
    ids=[
        *("query-value", "five-targets", "dropout", "decomposed", "decomposed-dropout", "generated"),
        *("series", "parallel", "adapter-dropout", "prefix", "prefix-mlp"),
    ],
)
def test_llama_saves_what_the_formula_says(precision: str, method: MethodConfig, tolerance: float) -> None:
    slots, examples, tokens = 2, 2, 32
    batch = {"tokens": torch.randint(0, 100, (slots, examples, tokens))}
    measured = saved_bytes(llama_backbone(SIZES, 100, TYPES[precision]), method, batch)
    rows = slots * examples * tokens
    anatomy = replace(llama(*SIZES, 100), tokens=tokens)
    predicted = activation_bytes(run(method, precision), anatomy, rows, recompute=False)
    assert predicted == pytest.approx(measured, rel=tolerance)


def test_wide_layers_make_their_inner_activations_again() -> None:
    sizes, method = (256, 704, 1, 4), LoraMethod(rank=64, targets=FIVE)
    batch = {"tokens": torch.randint(0, 100, (1, 2, 16))}
    measured = saved_bytes(llama_backbone(sizes, 100, torch.float32), method, batch)
    predicted = activation_bytes(run(method), llama(*sizes, 100), 32, recompute=False)
    assert predicted == pytest.approx(measured, rel=0.02)


def test_full_fine_tuning_of_a_llama_saves_what_the_formula_says() -> None:
    batch = {"tokens": torch.randint(0, 100, (1, 4, 32))}
    measured = saved_bytes(llama_backbone(SIZES, 100, torch.float32), FullMethod(), batch)
    predicted = activation_bytes(run(FullMethod()), llama(*SIZES, 100), 128, recompute=False)
    assert predicted == pytest.approx(measured, rel=0.04)


def vit_case(name: str) -> tuple[Backbone, Anatomy, tuple[int, ...]]:
    """A ViT without weights of its own, its sizes, and the shape of an image."""
    digits = name == "vit-digits"
    build = build_digits_vit if digits else timm_architecture(name).build
    image = (1, 8, 8) if digits else (3, 224, 224)
    model = build().eval().requires_grad_(False)
    unfuse_short_attention(model)
    backbone = Backbone(name, model, vit_targets(model), vit_features, 64 if digits else 192, "sha256:0")
    backbone = replace(backbone, attend=vit_attend)
    return backbone, anatomy_of(run(LoraMethod(), backbone=name)), image


@pytest.mark.parametrize("name", ["vit-digits", "vit-ti16"])
@pytest.mark.parametrize(
    ("method", "tolerance"),
    [
        (LoraMethod(rank=4), 0.02),
        (LoraMethod(rank=4, targets=("query", "value", "output", "up", "down")), 0.02),
        (ReploraMethod(rank=8, hidden=16), 0.02),
        (FullMethod(), 0.04),
        (AdapterMethod(bottleneck=8, targets=("output", "down")), 0.02),
        (AdapterMethod(bottleneck=8, targets=("query", "value")), 0.02),
        (AdapterMethod(bottleneck=8, targets=("output", "up"), form="parallel"), 0.02),
        (PrefixMethod(tokens=16), 0.02),
    ],
    ids=[
        *("query-value", "five-targets", "generated", "full"),
        *("series", "series-on-slices", "parallel", "prefix"),
    ],
)
def test_vit_saves_what_the_formula_says(name: str, method: MethodConfig, tolerance: float) -> None:
    backbone, anatomy, image = vit_case(name)
    slots, examples = 2, 2
    measured = saved_bytes(backbone, method, {"image": torch.zeros(slots, examples, *image)})
    assert anatomy.tokens is not None
    rows = slots * examples * anatomy.tokens
    predicted = activation_bytes(run(method, backbone=name), anatomy, rows, recompute=False)
    assert predicted == pytest.approx(measured, rel=tolerance)


def test_a_probe_saves_nothing() -> None:
    anatomy = anatomy_of(run(LinearProbeMethod()))
    assert activation_bytes(run(LinearProbeMethod()), anatomy, 1_000, recompute=False) == 0


@pytest.mark.parametrize(
    ("targets", "coefficients"), [(("query", "value"), (18, 6)), (FIVE, (20, 8))], ids=["two", "five"]
)
def test_llama_in_bf16_has_the_measured_coefficients(
    targets: tuple[str, ...], coefficients: tuple[int, int]
) -> None:
    anatomy = llama(5120, 13824, 40, 40)
    rows = 4_096
    known = (coefficients[0] * anatomy.width + coefficients[1] * anatomy.hidden) * anatomy.depth * rows
    method = LoraMethod(rank=1, targets=targets)
    assert activation_bytes(run(method, "bf16"), anatomy, rows, recompute=False) == pytest.approx(
        known, rel=0.002
    )
