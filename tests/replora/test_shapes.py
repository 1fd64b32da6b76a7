"""Sizes computed without torch equal those of the built models; parameter counts equal the known ones."""

from __future__ import annotations

import re
from typing import Literal

import pytest
import timm
import torch
from torchvision.models import video

from replora.config import (
    AdapterMethod,
    BackboneConfig,
    DoraMethod,
    DoranMethod,
    FullMethod,
    HoraMethod,
    LinearProbeMethod,
    LoraMethod,
    LowRankConfig,
    MethodConfig,
    PrefixMethod,
    ReploraMethod,
    RunConfig,
)
from replora.errors import ConfigError
from replora.methods.adaptation import adapt
from replora.models import BACKBONES
from replora.models.bart import bart_config, build_bart
from replora.models.base import Backbone
from replora.models.digits import build_digits_vit
from replora.models.language import build_language_model, language_config, language_targets
from replora.models.shapes import BART, LLAMA, VIDEO_SWIN, TargetShape, shapes_of
from replora.models.video import video_architecture
from replora.models.vision import vit_attend, vit_targets
from replora.parameters import (
    bottleneck_for_budget,
    rank_for_budget,
    run_parameters,
    tokens_for_budget,
    trainable_parameters,
)

METHODS: list[MethodConfig] = [
    FullMethod(),
    LinearProbeMethod(),
    LoraMethod(rank=3, targets=("query", "up")),
    DoraMethod(rank=3, targets=("query", "down")),
    DoraMethod(composition="noised"),
    DoranMethod(rank=4, hidden=6, plain_targets=("key",)),
    HoraMethod(rank=3, hidden=5),
    HoraMethod(shared=False, seed="diagonal", targets=("query", "key", "value"), plain_targets=("up",)),
    HoraMethod(scope="model", composition="noised"),
    AdapterMethod(bottleneck=5, targets=("output", "down", "value")),
    AdapterMethod(bottleneck=5, targets=("query", "up"), form="parallel", bias=True),
    PrefixMethod(tokens=3),
    PrefixMethod(tokens=3, made="mlp", hidden=7),
    ReploraMethod(),
    ReploraMethod(composition="weight-decomposed"),
    ReploraMethod(shared=False, seed="dense", rank=4, hidden=6),
    ReploraMethod(scope="model", targets=("query", "value", "down")),
    ReploraMethod(scope="model", shared=False, seed="dense", plain_targets=("key", "up")),
]
#: Every plain ViT of timm whose sizes we claim to know by its name.
TIMM = sorted(f"timm/{name}" for name in timm.list_models("vit_*") if shapes_of(f"timm/{name}"))


def built(name: str) -> torch.nn.Module:
    """The backbone without weights and without a head."""
    with torch.device("meta"):
        if name == "vit-digits":
            return build_digits_vit()
        if name in LLAMA:
            return build_language_model(language_config(name, None), torch.float32)
        if name in VIDEO_SWIN:
            return video_architecture(name).build()
        if name in BART:
            return build_bart(bart_config(name, None), torch.float32, torch.device("meta"))
        named = re.search(r"timm (\S+)\)", BACKBONES.get(name, ""))
        model: torch.nn.Module = timm.create_model(
            named[1] if named else name.removeprefix("timm/"), pretrained=False, num_classes=0
        )
        return model


@pytest.mark.parametrize("name", [*BACKBONES, *TIMM])
def test_base_parameters_equal_the_built_model(name: str) -> None:
    shape = shapes_of(name)
    assert shape is not None
    assert shape.base_parameters == sum(weight.numel() for weight in built(name).parameters())


@pytest.mark.parametrize(
    ("name", "parameters", "lora"),
    [
        ("llama-7b", 6_738_415_616, 56_098_816),
        ("llama-13b", 13_015_864_320, 87_818_240),
    ],
)
def test_llama_has_the_known_counts(name: str, parameters: int, lora: int) -> None:
    shape = shapes_of(name)
    assert shape is not None
    method = LoraMethod(rank=32, targets=("query", "key", "value", "up", "down"))
    assert shape.base_parameters == parameters
    assert trainable_parameters(method, shape.targets, parameters) == lora


def test_bart_base_has_the_known_counts() -> None:
    shape, weights = BART["bart-base"], dict(built("bart-base").named_parameters())
    assert shape.base_parameters == 139_420_416 == sum(weight.numel() for weight in weights.values())
    biases = [weight.numel() for name, weight in weights.items() if name.endswith("bias")]
    assert shape.bias_parameters == sum(biases)


@pytest.mark.parametrize(
    ("name", "trained", "percent"), [("vl-bart-image", 8_786_688, 5.93), ("vl-bart-video", 7_607_040, 5.17)]
)
def test_lora_on_vl_bart_has_the_known_counts(name: str, trained: int, percent: float) -> None:
    shape = BART[name]
    run = RunConfig(backbone=BackboneConfig(name=name), method=LoraMethod(rank=128))
    assert run_parameters(run) == trained
    full = run.model_copy(update={"method": FullMethod()})
    assert run_parameters(full) == shape.base_parameters
    of_all = trained / (BART["bart-base"].base_parameters + trained)  # fits both of the paper's figures
    assert round(100 * of_all, 2) == percent


@pytest.mark.parametrize("name", ["video-swin-t", "video-swin-s", "video-swin-b"])
def test_video_swin_has_as_many_parameters_as_torchvisions(name: str) -> None:
    build = getattr(video, name.replace("video-swin-", "swin3d_"))
    with torch.device("meta"):
        model = build(weights=None, num_classes=51)
    head = 51 * (VIDEO_SWIN[name].width + 1)
    assert VIDEO_SWIN[name].base_parameters + head == sum(each.numel() for each in model.parameters())


@pytest.mark.parametrize("name", ["vit-digits", "vit-s16", "llama-7b"])
def test_targets_equal_the_built_model(name: str) -> None:
    shape = shapes_of(name)
    assert shape is not None
    model = built(name)
    targets = language_targets(model) if name in LLAMA else vit_targets(model)
    found = [TargetShape(t.name, t.block, t.inputs, t.outputs, t.heads) for t in targets]
    assert found == list(shape.targets)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_count_equals_the_parameters_that_a_slot_trains(method: MethodConfig) -> None:
    model, shape = build_digits_vit(), shapes_of("vit-digits")
    assert shape is not None
    backbone = Backbone(
        name="vit-digits",
        model=model,
        targets=vit_targets(model),
        features=lambda model, batch: batch["image"],
        width=shape.width,
        fingerprint="sha256:0",
        attend=vit_attend,
    )
    trained = sum(torch.Size(size).numel() for size in adapt(backbone, method).shapes(method).values())
    assert trainable_parameters(method, shape.targets, shape.base_parameters) == trained


def test_lora_of_rank_8_on_vit_b16_has_the_known_count() -> None:
    shape = shapes_of("vit-b16")
    assert shape is not None
    assert trainable_parameters(LoraMethod(rank=8), shape.targets, shape.base_parameters) == 294_912


def test_default_replora_on_vit_b16_has_the_known_count() -> None:
    shape = shapes_of("vit-b16")
    assert shape is not None
    count = trainable_parameters(ReploraMethod(rank=8, hidden=16), shape.targets, shape.base_parameters)
    assert count == 593_472


@pytest.mark.parametrize(
    "name", ["timm/swin_tiny_patch4_window7_224", "timm/vit_base_patch16_clip_224", "unknown"]
)
def test_sizes_of_other_architectures_are_not_guessed(name: str) -> None:
    assert shapes_of(name) is None


def test_timm_has_plain_vits_that_are_known_by_name() -> None:
    assert {"timm/vit_tiny_patch16_224", "timm/vit_base_patch32_384"} <= set(TIMM)


def test_tag_of_timm_weights_does_not_change_the_sizes() -> None:
    assert shapes_of("timm/vit_base_patch16_224.augreg_in21k") == shapes_of("vit-b16")


RANKED: list[LowRankConfig] = [
    DoraMethod(),
    DoranMethod(hidden=24),
    HoraMethod(hidden=24),
    LoraMethod(targets=("key", "down")),
    ReploraMethod(scope="model"),
]


@pytest.mark.parametrize("method", RANKED, ids=repr)
def test_rank_for_budget_is_the_largest_that_fits(method: LowRankConfig) -> None:
    shape = shapes_of("vit-s16")
    assert shape is not None
    for rank in (1, 7, 64):
        budget = trainable_parameters(method.model_copy(update={"rank": rank}), shape.targets, 0)
        assert rank_for_budget(budget, method, shape.targets) == rank
        assert rank_for_budget(budget + 1, method, shape.targets) == rank


@pytest.mark.parametrize("form", ["series", "parallel"])
def test_bottleneck_for_budget_is_the_largest_that_fits(form: Literal["series", "parallel"]) -> None:
    shape = shapes_of("vit-s16")
    assert shape is not None
    for bottleneck in (1, 7, 900):
        method = AdapterMethod(bottleneck=bottleneck, form=form, bias=True)
        budget = trainable_parameters(method, shape.targets, 0)
        assert bottleneck_for_budget(budget, AdapterMethod(form=form, bias=True), shape.targets) == bottleneck
        assert bottleneck_for_budget(budget + 1, method, shape.targets) == bottleneck


@pytest.mark.parametrize("made", ["direct", "mlp"])
def test_tokens_for_budget_is_the_longest_prefix_that_fits(made: Literal["direct", "mlp"]) -> None:
    shape = shapes_of("vit-s16")
    assert shape is not None
    for tokens in (1, 7, 900):
        budget = trainable_parameters(PrefixMethod(tokens=tokens, made=made), shape.targets, 0)
        assert tokens_for_budget(budget, PrefixMethod(made=made), shape.targets) == tokens
        assert tokens_for_budget(budget + 1, PrefixMethod(made=made), shape.targets) == tokens


@pytest.mark.parametrize(("name", "adapters"), [("llama-7b", 67_108_864), ("llama-13b", 104_857_600)])
def test_published_adapters_have_the_percentages_of_the_paper(name: str, adapters: int) -> None:
    shape = shapes_of(name)
    assert shape is not None
    counted = trainable_parameters(AdapterMethod(bottleneck=256), shape.targets, shape.base_parameters)
    assert counted == adapters
    percent = 100 * counted / (counted + shape.base_parameters)
    assert round(percent, 2) == {"llama-7b": 0.99, "llama-13b": 0.80}[name]


def test_ten_tokens_have_the_percentage_of_the_paper_on_13b() -> None:
    shape = shapes_of("llama-13b")
    assert shape is not None
    counted = trainable_parameters(PrefixMethod(tokens=10), shape.targets, shape.base_parameters)
    assert counted == 4_096_000
    assert round(100 * counted / shape.base_parameters, 2) == 0.03


def test_rank_for_budget_stops_at_the_width() -> None:
    shape = shapes_of("vit-s16")
    assert shape is not None
    assert rank_for_budget(10**12, LoraMethod(), shape.targets) == 384


def test_rank_for_budget_refuses_a_budget_below_rank_1() -> None:
    shape = shapes_of("vit-s16")
    assert shape is not None
    with pytest.raises(ConfigError, match="must hold rank 1 of lora, which has 18,432"):
        rank_for_budget(18_431, LoraMethod(), shape.targets)
