"""RepLoRA, DoRAN and HoRA inside PEFT: what a user of PEFT does with LoRA works with them."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from packaging.requirements import Requirement
from packaging.version import Version
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

from replora.config import BackboneConfig
from replora.errors import AdapterError, ConfigError, MachineError
from replora.methods.adaptation import LowRankAdaptation
from replora.methods.exchange import DoranConfig, HoraConfig, RepLoraConfig
from replora.methods.exchange.configs import TESTED, check_release
from replora.methods.exchange.tensors import AdapterTensors
from replora.methods.layout import Layout, cover
from replora.models.load import load_backbone

ROOT = Path(__file__).parents[3]
SIZES: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}


def llama() -> Any:
    """Two layers, grouped queries."""
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "vocab_size": 60,
    }
    config = LlamaConfig(
        **sizes, num_attention_heads=4, num_key_value_heads=2, bos_token_id=0, eos_token_id=1, use_cache=False
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


def transformers_vit() -> ViTForImageClassification:
    more: dict[str, Any] = {"num_attention_heads": 2, "image_size": 16, "patch_size": 8, "num_labels": 3}
    torch.manual_seed(0)
    model = ViTForImageClassification(ViTConfig(**SIZES, **more))
    model.eval()
    return model


def timm_vit() -> nn.Module:
    """Queries, keys and values in one fused linear."""
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=32, num_heads=2, num_classes=3
    )
    return model.eval()


def tokens() -> Tensor:
    return torch.randint(60, (3, 8), generator=torch.Generator().manual_seed(1))


def images(side: int) -> Tensor:
    return torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(1))


Build = Callable[[], nn.Module]
#: A model, its input, and PEFT's names of its targets.
MODELS: dict[str, tuple[Build, Tensor, dict[str, Any]]] = {
    "llama": (
        llama,
        tokens(),
        {"target_modules": ["q_proj", "v_proj", "up_proj"], "plain_modules": ["up_proj"]},
    ),
    "vit": (transformers_vit, images(16), {"target_modules": ["q_proj", "v_proj"]}),
    "timm": (timm_vit, images(32), {"target_modules": ["qkv", "fc1"], "plain_modules": ["fc1"]}),
}
SWITCHES: dict[str, Callable[..., Any]] = {
    "replora": RepLoraConfig,
    "unshared": lambda **named: RepLoraConfig(shared=False, activation="tanh", **named),
    "model": lambda **named: RepLoraConfig(scope="model", seed="dense", **named),
    "decomposed": lambda **named: RepLoraConfig(composition="weight-decomposed", **named),
    "doran": DoranConfig,
    "hora": HoraConfig,
}
models = pytest.mark.parametrize("name", MODELS)
switches = pytest.mark.parametrize("switch", SWITCHES)


def wrapped(name: str, switch: str, *, stir: bool = True, **changes: Any) -> tuple[Any, Tensor]:
    """A model under an adapter that (where stirred) is away from its start, and an input."""
    build, x, targets = MODELS[name]
    model = get_peft_model(build(), SWITCHES[switch](r=4, hidden=6, alpha=8.0, **{**targets, **changes}))
    if stir:
        stirred(model)
    return model.eval(), x


def stirred(model: nn.Module, seed: int = 3) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def logits(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        out = model(x)
    found: Tensor = out if isinstance(out, Tensor) else out.logits
    return found


@models
@switches
def test_an_adapter_starts_at_the_base(name: str, switch: str) -> None:
    model, x = wrapped(name, switch, stir=False)
    assert torch.allclose(logits(model, x), logits(MODELS[name][0](), x), atol=1e-6)


@models
@switches
def test_everything_of_an_adapter_changes_the_output_and_only_it_trains(name: str, switch: str) -> None:
    model, x = wrapped(name, switch)
    before = logits(model, x)
    out = model(x)
    (out if isinstance(out, Tensor) else out.logits).square().sum().backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all(".replora_adapters." in n and p.grad is not None and p.grad.any() for n, p in trained.items())
    assert not torch.allclose(before, logits(MODELS[name][0](), x), atol=1e-3)


@models
@switches
def test_a_saved_adapter_gives_the_same_logits(name: str, switch: str, tmp_path: Path) -> None:
    model, x = wrapped(name, switch)
    model.save_pretrained(str(tmp_path))
    again = PeftModel.from_pretrained(MODELS[name][0](), tmp_path)
    assert torch.equal(logits(again, x), logits(model, x))


def test_a_shared_generator_is_saved_once(tmp_path: Path) -> None:
    model, _ = wrapped("llama", "model")
    model.save_pretrained(str(tmp_path))
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in saved.values()) == model.get_nb_trainable_parameters()[0]
    assert sum(name.endswith("generator/A/weight") for name in saved) == 1


@models
@switches
def test_merging_keeps_the_logits(name: str, switch: str) -> None:
    model, x = wrapped(name, switch)
    before = logits(model, x)
    merged = copy.deepcopy(model).merge_and_unload()
    assert not any("replora" in key for key in merged.state_dict())
    assert torch.allclose(logits(merged, x), before, atol=1e-5)


@switches
def test_unmerging_restores_every_bit(switch: str) -> None:
    model, x = wrapped("llama", switch)
    before, weights = logits(model, x), copy.deepcopy(model.state_dict())
    model.merge_adapter()
    assert not torch.equal(
        weights["base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight"],
        model.state_dict()["base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight"],
    )
    model.unmerge_adapter()
    assert all(torch.equal(weights[key], tensor) for key, tensor in model.state_dict().items())
    assert torch.equal(logits(model, x), before)


def test_merging_refuses_weights_that_are_not_finite() -> None:
    model, _ = wrapped("llama", "replora")
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).fill_(torch.inf)
    with pytest.raises(ValueError, match="not finite"):
        model.merge_adapter(safe_merge=True)
    assert not model.base_model.model.model.layers[0].self_attn.q_proj.merged


@switches
def test_a_disabled_adapter_leaves_the_base(switch: str) -> None:
    model, x = wrapped("llama", switch)
    with model.disable_adapter():
        assert torch.equal(logits(model, x), logits(llama(), x))
    assert not torch.equal(logits(model, x), logits(llama(), x))


def test_two_adapters_do_not_see_each_other(tmp_path: Path) -> None:
    model, x = wrapped("llama", "replora")
    first = logits(model, x)
    model.add_adapter("second", RepLoraConfig(r=2, hidden=3, target_modules=["k_proj", "v_proj"]))
    assert torch.equal(logits(model, x), first)
    model.set_adapter("second")
    assert torch.allclose(logits(model, x), logits(llama(), x), atol=1e-6)
    stirred(model, seed=4)
    second = logits(model, x)
    model.set_adapter("default")
    assert torch.equal(logits(model, x), first)
    model.save_pretrained(str(tmp_path))
    again = PeftModel.from_pretrained(llama(), tmp_path)
    again.load_adapter(tmp_path / "second", adapter_name="second")
    assert torch.equal(logits(again, x), first)
    again.set_adapter("second")
    assert torch.equal(logits(again, x), second)


def test_only_the_active_adapter_trains() -> None:
    model, _ = wrapped("llama", "replora")

    def training() -> set[str]:
        return {n.split(".")[2] for n, p in model.named_parameters() if p.requires_grad}

    model.add_adapter("second", RepLoraConfig(r=2, target_modules=["k_proj"]))
    assert training() == {"default"}
    model.set_adapter("second")
    assert training() == {"second"}
    with pytest.warns(UserWarning, match="Setting active adapter to default"):
        model.delete_adapter("second")
    assert training() == {"default"}
    assert not any("second" in name for name in model.state_dict())


def test_a_head_that_trains_as_a_whole_is_saved(tmp_path: Path) -> None:
    model, x = wrapped("vit", "replora", modules_to_save=["classifier"])
    model.save_pretrained(str(tmp_path))
    again = PeftModel.from_pretrained(transformers_vit(), tmp_path)
    assert torch.equal(logits(again, x), logits(model, x))
    assert not torch.equal(
        again.state_dict()["base_model.model.classifier.modules_to_save.default.weight"],
        transformers_vit().state_dict()["classifier.weight"],
    )


class Sentences(torch.utils.data.Dataset[dict[str, Tensor]]):
    """A few token sequences that repeat."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = tokens()[index % 3]
        return {"input_ids": ids, "labels": ids}


@pytest.mark.parametrize("recompute", [False, True])
def test_the_stock_trainer_trains_and_saves_it(recompute: bool, tmp_path: Path) -> None:
    model = get_peft_model(
        llama(), DoranConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    )
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=6,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=3e-2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        logging_steps=1,
        seed=0,
        activation_checkpointing=recompute,
        save_steps=6,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=Sentences())
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] - 0.1
    again = PeftModel.from_pretrained(llama(), tmp_path / "checkpoint-6")
    assert torch.equal(logits(again, tokens()), logits(model.eval(), tokens()))


def test_recomputation_changes_no_gradient() -> None:
    found = []
    for options in (None, {"use_reentrant": False}, {"use_reentrant": True}):
        model, x = wrapped("llama", "doran")
        if options is not None:
            model.activation_checkpointing_enable(options)
            model.enable_input_require_grads()
        model.train()
        model(input_ids=x, labels=x).loss.backward()
        found.append([p.grad for p in model.parameters() if p.requires_grad])
    for kind in found[1:]:
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(found[0], kind, strict=True))


def test_two_forward_passes_may_run_backward_in_any_order() -> None:
    model, x = wrapped("llama", "replora")
    parameters = [p for p in model.parameters() if p.requires_grad]
    first, second = (model(input_ids=x[rows], labels=x[rows]).loss for rows in (slice(0, 1), slice(1, 3)))
    second.backward()
    first.backward()
    together = [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]
    model.zero_grad()
    (model(input_ids=x[:1], labels=x[:1]).loss + model(input_ids=x[1:], labels=x[1:]).loss).backward()
    assert all(torch.allclose(a, p.grad, atol=1e-6) for a, p in zip(together, parameters, strict=True))


def test_changed_data_shows_in_the_next_pass() -> None:
    """Also changes that autograd cannot see."""
    model, x = wrapped("llama", "replora")
    before = logits(model, x)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.mul_(1.5)
    assert not torch.allclose(logits(model, x), before, atol=1e-4)


def test_generation_is_that_of_the_merged_model() -> None:
    model, x = wrapped("llama", "replora", task_type="CAUSAL_LM")
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 1}
    ours = model.generate(input_ids=x[:1], **options)
    merged = model.merge_and_unload()
    assert torch.equal(ours, merged.generate(input_ids=x[:1], **options))


@pytest.mark.parametrize("switch", SWITCHES)
def test_the_same_tensors_give_the_logits_and_gradients_of_a_pack(switch: str) -> None:
    backbone = load_backbone(BackboneConfig(weights="random"), precision="fp64", device="cpu")
    config = SWITCHES[switch](r=4, hidden=6, target_modules=["qkv", "fc1"], plain_modules=["fc1"])
    model: Any = get_peft_model(copy.deepcopy(backbone.model), config)
    stirred(model)
    adapter = model.base_model.replora_adapters["default"]
    assert isinstance(adapter, AdapterTensors)
    ours = {name.replace("fc1", "up"): tensor for name, tensor in adapter.tensors().items()}
    method = adapter.method.model_copy(update={"plain_targets": ("up",)})
    batch = {"image": torch.randn(3, 1, 8, 8, dtype=torch.float64)}
    features, gradients = pack_outputs(LowRankAdaptation(backbone, method), method, ours, batch)
    found = model.base_model.model.forward_head(
        model.base_model.model.forward_features(batch["image"]),
        pre_logits=True,
    )
    assert torch.allclose(found, features, atol=1e-12)
    functional.silu(found).sum().backward()
    for name, tensor in ours.items():
        assert tensor.grad is not None
        assert torch.allclose(tensor.grad, gradients[name], atol=1e-10), name


def pack_outputs(
    adaptation: LowRankAdaptation, method: Any, tensors: dict[str, Tensor], batch: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Features of a pack of one, and the gradients of the sum of their silu."""
    own = adaptation.shapes(method)
    layout = Layout(adaptation.shapes(cover([method])))
    matrix = torch.zeros(1, layout.width, dtype=torch.float64)
    layout.write(matrix[0], {name: tensor.detach() for name, tensor in tensors.items()})
    matrix.requires_grad_()
    adaptation.prepare(layout.views(matrix), [method])
    features = adaptation.features({name: each.unsqueeze(0) for name, each in batch.items()})
    functional.silu(features).sum().backward()
    adaptation.settle()
    assert matrix.grad is not None
    return features[0].detach(), layout.read(matrix.grad[0], own)


def test_unknown_targets_list_the_models_linear_layers() -> None:
    with pytest.raises(ConfigError, match=r"(?s)'q_prj'.*Did you mean q_proj.*up_proj, down_proj, lm_head"):
        get_peft_model(llama(), RepLoraConfig(target_modules=["v_proj", "q_prj"]))


def test_a_target_that_is_no_linear_is_refused() -> None:
    with pytest.raises(ConfigError, match="input_layernorm is a LlamaRMSNorm"):
        get_peft_model(llama(), RepLoraConfig(target_modules=["input_layernorm"]))


def test_a_rank_above_a_width_is_refused() -> None:
    with pytest.raises(ConfigError, match="must be at most 16, the width of v_proj, but got 20"):
        get_peft_model(llama(), RepLoraConfig(r=20, hidden=32, target_modules=["q_proj", "v_proj"]))


def test_heads_are_refused_where_there_are_none() -> None:
    with pytest.raises(ConfigError, match="must have attention heads, but up_proj has none"):
        get_peft_model(llama(), HoraConfig(target_modules=["q_proj", "up_proj"]))


def test_fused_parts_must_divide_the_outputs() -> None:
    with pytest.raises(ConfigError, match="32 outputs, which are not 5 equal parts"):
        get_peft_model(
            llama(), RepLoraConfig(target_modules=["q_proj"], fused={"q_proj": ["a", None, "b", "c", "d"]})
        )


def test_a_wrong_field_is_refused_when_the_configuration_is_made() -> None:
    with pytest.raises(ConfigError, match=r"activation must be .*but got 'gelo'"):
        RepLoraConfig(activation="gelo")


def test_a_width_below_the_rank_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="hidden = 4 is below r = 8; the update's rank is at most 4"):
        RepLoraConfig(r=8, hidden=4)


@pytest.mark.parametrize("damage", ["missing", "extra", "shape", "nan"])
def test_tensors_that_do_not_fit_are_refused(damage: str, tmp_path: Path) -> None:
    model, _ = wrapped("llama", "replora")
    model.save_pretrained(str(tmp_path))
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("generator/A/seed"))
    match damage:
        case "missing":
            del tensors[name]
        case "extra":
            tensors[name + "x"] = tensors[name].clone()
        case "shape":
            tensors[name] = tensors[name][:, :, :2].clone()
        case _:
            tensors[name][0] = torch.nan
    save_file(tensors, path)
    with pytest.raises(AdapterError, match="generator/A/seed"):
        PeftModel.from_pretrained(llama(), tmp_path)


def test_other_releases_of_peft_are_refused() -> None:
    with pytest.raises(MachineError, match=r"PEFT 0.22.0 is installed.\n  Install peft>=0.21,<0.22"):
        check_release("0.22.0")
    check_release("0.21.7")


def test_the_tested_releases_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (peft,) = [found for found in map(Requirement, project["dependencies"]) if found.name == "peft"]
    assert {(each.operator, Version(each.version)) for each in peft.specifier} == {
        (">=", TESTED[0]),
        ("<", TESTED[1]),
    }
