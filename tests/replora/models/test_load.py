"""Backbones: which rows are which target, that they are frozen, and where their weights come from."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from replora.config import BackboneConfig
from replora.errors import ConfigError
from replora.models.base import Backbone, Target
from replora.models.digits import build_digits_vit
from replora.models.load import load_backbone
from replora.models.timm_vit import timm_architecture
from replora.models.vision import VitFeatures
from replora.tasks.base import IMAGENET_MEAN, IMAGENET_STD

TI16 = BackboneConfig(name="vit-ti16", weights="random")


def random_digits() -> Backbone:
    return load_backbone(BackboneConfig(weights="random"), precision="fp32", device="cpu")


def fused_digits() -> Backbone:
    """The digits ViT with timm's fused attention, whose inputs the fixture `attention` sees."""
    backbone = random_digits()
    for module in backbone.model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = True  # type: ignore[assignment]
    return backbone


def some_images(rows: int = 2) -> dict[str, Tensor]:
    return {"image": torch.randn(rows, 1, 8, 8, generator=torch.Generator().manual_seed(1))}


def target(backbone: Backbone, key: str) -> Target:
    return next(each for each in backbone.targets if each.key == key)


def perturb(backbone: Backbone, found: Target, head: int | None = None) -> None:
    """Adds to the weights of a target, or of one of its heads."""
    linear = backbone.model.get_submodule(found.module)
    assert isinstance(linear, nn.Linear)
    first, last = found.rows
    if head is not None:
        part = found.outputs // found.heads
        first, last = first + head * part, first + (head + 1) * part
    linear.weight.data[first:last] += 0.5


@pytest.fixture
def attention(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Queries, keys and values `[B, H, T, D]` of every call of timm's attention."""
    calls: list[tuple[Tensor, Tensor, Tensor]] = []
    real = torch.nn.functional.scaled_dot_product_attention

    def record(query: Tensor, key: Tensor, value: Tensor, **options: object) -> Tensor:
        calls.append((query, key, value))
        return real(query, key, value, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", record)
    return calls


@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_rows_of_a_projection_change_that_projection_only(
    name: str, attention: list[tuple[Tensor, Tensor, Tensor]]
) -> None:
    backbone = fused_digits()
    backbone.features(backbone.model, some_images())
    perturb(backbone, target(backbone, f"0.{name}"))
    backbone.features(backbone.model, some_images())
    before, after = attention[0], attention[len(backbone.model.blocks)]  # type: ignore[arg-type]
    changed = {
        each: not torch.equal(old, new)
        for each, old, new in zip(("query", "key", "value"), before, after, strict=True)
    }
    assert changed == {each: each == name for each in ("query", "key", "value")}


def test_heads_divide_the_rows_equally_in_order(attention: list[tuple[Tensor, Tensor, Tensor]]) -> None:
    backbone = fused_digits()
    backbone.features(backbone.model, some_images())
    perturb(backbone, target(backbone, "0.value"), head=2)
    backbone.features(backbone.model, some_images())
    before, after = attention[0][2], attention[len(backbone.model.blocks)][2]  # type: ignore[arg-type]
    assert [not torch.equal(before[:, head], after[:, head]) for head in range(4)] == [
        False,
        False,
        True,
        False,
    ]


@pytest.mark.parametrize("config", [BackboneConfig(weights="random"), TI16], ids=["vit-digits", "vit-ti16"])
def test_every_target_changes_the_features(config: BackboneConfig) -> None:
    backbone = load_backbone(config, precision="fp32", device="cpu")
    shape = (1, 8, 8) if config.name == "vit-digits" else (3, 224, 224)
    batch = {"image": torch.randn(1, *shape, generator=torch.Generator().manual_seed(1))}
    last = len(backbone.model.blocks) - 1  # type: ignore[arg-type]
    features = [backbone.features(backbone.model, batch)]
    chosen = [each for each in backbone.targets if each.block in (0, last)]
    for found in chosen:
        perturb(backbone, found)
        features.append(backbone.features(backbone.model, batch))
    assert len(chosen) == 12
    assert not [
        each.key
        for each, old, new in zip(chosen, features, features[1:], strict=False)
        if torch.equal(old, new)
    ]


def test_targets_are_named_block_by_block() -> None:
    keys = [each.key for each in random_digits().targets]
    names = ("query", "key", "value", "output", "up", "down")
    assert keys == [f"{block}.{name}" for block in range(4) for name in names]


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("fp64", torch.float64), ("bf16", torch.bfloat16)]
)
def test_backbone_is_frozen_in_evaluation_mode_and_in_its_precision(
    precision: str, dtype: torch.dtype
) -> None:
    backbone = load_backbone(BackboneConfig(), precision=precision, device="cpu")  # type: ignore[arg-type]
    assert not [name for name, each in backbone.model.named_parameters() if each.requires_grad]
    assert not [name for name, each in backbone.model.named_modules() if each.training]
    assert {each.dtype for each in backbone.model.parameters()} == {dtype}


def test_fingerprint_is_of_the_weights_whatever_the_precision() -> None:
    def fingerprint(weights: str, precision: str) -> str:
        config = BackboneConfig(weights=weights)
        return load_backbone(config, precision=precision, device="cpu").fingerprint  # type: ignore[arg-type]

    assert fingerprint("random", "fp32") == fingerprint("random", "bf16")
    assert fingerprint("random", "fp32") != fingerprint("pretrained", "fp32")


def test_random_weights_are_always_the_same_and_leave_the_random_state_alone() -> None:
    state = torch.get_rng_state()
    assert random_digits().fingerprint == random_digits().fingerprint
    assert torch.equal(torch.get_rng_state(), state)


def test_features_are_those_of_the_plain_model() -> None:
    backbone = random_digits()
    plain = build_digits_vit()
    plain.load_state_dict(backbone.model.state_dict())
    features = backbone.features(backbone.model, some_images())
    assert features.shape == (2, backbone.width)
    torch.testing.assert_close(features, plain.eval()(some_images()["image"]))


def test_images_reach_the_model_in_the_normalization_of_its_pretraining() -> None:
    backbone = load_backbone(TI16, precision="fp32", device="cpu")
    pixels = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (IMAGENET_MEAN, IMAGENET_STD))
    ours = backbone.features(backbone.model, {"image": (pixels - mean) / std})
    theirs = backbone.model((pixels - 0.5) / 0.5)  # the mean and deviation of augreg_in21k
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_backbone_with_imagenet_normalization_takes_images_as_they_are() -> None:
    features = timm_architecture("timm/vit_small_patch16_224.dino").features
    assert isinstance(features, VitFeatures)
    assert features.scale is None


def test_images_of_another_size_are_refused() -> None:
    backbone = random_digits()
    with pytest.raises(ConfigError, match=r"takes images of \(1, 8, 8\).* gives \(3, 224, 224\)"):
        backbone.features(backbone.model, {"image": torch.zeros(1, 3, 224, 224)})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit-b17", "Did you mean vit-b16"),
        ("vit_tiny_patch16_224", "Did you mean timm/vit_tiny_patch16_224"),
        ("timm/vit_nope", "must be a known backbone, but got 'timm/vit_nope'"),
        ("timm/vit_tiny_patch16_224.nope", "must be a known backbone"),
        ("timm/hf-hub:somebody/something", "must be a known backbone"),
        ("timm/resnet18", "timm/resnet18 is a ResNet"),
        ("timm/vit_base_patch16_xp_224", r"blocks\.0\.attn\.qkv of this model is not a linear layer"),
    ],
)
def test_wrong_name_is_a_configuration_error(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_backbone(BackboneConfig(name=name, weights="random"), precision="fp32", device="cpu")


def test_names_of_backbones_and_tasks_come_without_torch() -> None:
    code = "import sys, replora.models, replora.tasks; print({'torch', 'timm', 'PIL'} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout == "set()\n"
