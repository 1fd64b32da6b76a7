"""What leaves the project: plain LoRA for stock PEFT, merged weights, and our own folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from timm.models import VisionTransformer
from torch import Tensor
from transformers import AutoModelForCausalLM

from replora.config import (
    AdapterMethod,
    BackboneConfig,
    CommonsenseTask,
    DoraMethod,
    DoranMethod,
    FullMethod,
    HoraMethod,
    LinearProbeMethod,
    LoraMethod,
    MethodConfig,
    PrefixMethod,
    ReploraMethod,
    RunConfig,
    TrainConfig,
)
from replora.errors import AdapterError
from replora.methods.adaptation import adapt
from replora.methods.bake import merge
from replora.methods.exchange.folders import export, import_peft
from replora.methods.folder import SavedAdapter, load_adapter, save_adapter
from replora.models.load import load_backbone
from replora.tasks.load import load_task
from replora.train.loop import evaluate, train
from replora.train.model import SlotModel
from tests.replora.tiny_llama import save_tiny_llama

Runs = Callable[[str], tuple[Path, RunConfig]]

LOW_RANK: dict[str, MethodConfig] = {
    "lora": LoraMethod(rank=3),
    "replora": ReploraMethod(rank=3, hidden=5),
    "replora-plain": ReploraMethod(rank=3, hidden=5, plain_targets=("key", "up")),
    "dora": DoraMethod(rank=3, targets=("query", "value", "output", "down")),
    "doran": DoranMethod(rank=3, hidden=5),
    "hora": HoraMethod(rank=3, hidden=5, plain_targets=("up",)),
    "hora-noised": HoraMethod(rank=3, hidden=5, composition="noised"),
    "replora-decomposed": ReploraMethod(
        rank=3, hidden=5, composition="weight-decomposed", plain_targets=("key", "up")
    ),
    "replora-model": ReploraMethod(rank=3, hidden=5, scope="model", shared=False),
}


#: Those that are no change of weights.
MODULES: dict[str, MethodConfig] = {
    "adapter": AdapterMethod(bottleneck=5),
    "prefix": PrefixMethod(tokens=3, made="mlp", hidden=7),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """One short finished run per method, made when first asked for."""
    folder = tmp_path_factory.mktemp("runs")

    def of(name: str) -> tuple[Path, RunConfig]:
        methods = {**LOW_RANK, **MODULES, "full": FullMethod(), "linear-probe": LinearProbeMethod()}
        config = RunConfig(method=methods[name], train=TrainConfig(steps=12, batch=8))
        train(config, folder / name)
        return folder / name, config

    return of


def logits(run_dir: Path, config: RunConfig) -> tuple[Tensor, Tensor]:
    """Images of the validation split, and our own forward pass over them."""
    backbone = load_backbone(config.backbone, precision="fp32", device="cpu")
    task = load_task(config.task, precision="fp32", device="cpu")
    split = task.split("val")
    batch = split.take(torch.arange(len(split)), None)
    model = SlotModel(backbone, task, config)
    parameters = model.one(load_adapter(run_dir / "adapter").tensors, config.method)
    with torch.no_grad():
        model.adaptation.prepare(parameters, [config.method])
        packed = {name: tensor.unsqueeze(0) for name, tensor in batch.items()}
        return batch["image"], model.forward(packed, parameters)[0]


def stock_model(config: RunConfig, classes: int = 5) -> VisionTransformer:
    """timm's own model of the digits backbone's weights."""
    weights = load_backbone(config.backbone, precision="fp32", device="cpu").model.state_dict()
    model = VisionTransformer(8, 2, 1, classes, embed_dim=64, depth=4, num_heads=4)
    assert model.load_state_dict(weights, strict=False).missing_keys == ["head.weight", "head.bias"]
    return model.eval()


@pytest.mark.parametrize("name", LOW_RANK)
def test_stock_peft_gives_the_same_logits(name: str, runs: Runs, tmp_path: Path) -> None:
    run_dir, config = runs(name)
    images, ours = logits(run_dir, config)
    out = export(run_dir, "peft-lora", tmp_path / "lora")
    theirs = PeftModel.from_pretrained(stock_model(config), str(out)).eval()
    with torch.no_grad():
        assert torch.allclose(theirs(images), ours, atol=1e-5)


@pytest.mark.parametrize("name", [*LOW_RANK, "full", "linear-probe"])
def test_merge_equals_forward(name: str, runs: Runs, tmp_path: Path) -> None:
    run_dir, config = runs(name)
    images, ours = logits(run_dir, config)
    out = export(run_dir, "merged", tmp_path / "merged")
    model = stock_model(config)
    model.load_state_dict(load_file(out / "model.safetensors"))
    with torch.no_grad():
        assert torch.allclose(model(images), ours, atol=1e-5)


@pytest.mark.parametrize("name", ["replora", *MODULES])
def test_own_folder_keeps_every_bit(name: str, runs: Runs, tmp_path: Path) -> None:
    run_dir, _ = runs(name)
    out = export(run_dir, "replora", tmp_path / "own")
    before, after = load_adapter(run_dir / "adapter"), load_adapter(out)
    assert before.config == after.config
    assert before.tensors.keys() == after.tensors.keys()
    assert all(torch.equal(before.tensors[name], after.tensors[name]) for name in before.tensors)


def test_export_refuses_a_method_without_a_lora_form(runs: Runs, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="no LoRA form"):
        export(runs("full")[0], "peft-lora", tmp_path / "lora")


@pytest.mark.parametrize("name", MODULES)
def test_export_refuses_to_put_into_weights_what_is_none(name: str, runs: Runs, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="which no weights of the base can hold"):
        export(runs(name)[0], "merged", tmp_path / "merged")
    with pytest.raises(AdapterError, match="has no LoRA form; export it as replora"):
        export(runs(name)[0], "peft-lora", tmp_path / "lora")


@pytest.mark.parametrize("name", MODULES)
def test_eval_of_the_folder_gives_the_metrics_of_the_run(name: str, runs: Runs) -> None:
    run_dir, config = runs(name)
    assert evaluate(run_dir, "val")["accuracy"] == train(config, run_dir).metrics["accuracy"]


def test_export_refuses_an_existing_folder(runs: Runs, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="exists already"):
        export(runs("lora")[0], "merged", tmp_path)


def test_export_leaves_nothing_half_written(runs: Runs, tmp_path: Path) -> None:
    with pytest.raises(AdapterError):
        export(runs("full")[0], "peft-lora", tmp_path / "lora")
    assert list(tmp_path.iterdir()) == []


GENERATED = ["replora", "replora-plain", "doran", "hora", "replora-decomposed", "replora-model"]


@pytest.mark.parametrize("name", GENERATED)
def test_a_folder_for_peft_gives_the_same_logits_and_comes_back_whole(
    name: str, runs: Runs, tmp_path: Path
) -> None:
    run_dir, config = runs(name)
    images, ours = logits(run_dir, config)
    out = export(run_dir, "peft", tmp_path / "peft")
    theirs = PeftModel.from_pretrained(stock_model(config), str(out)).eval()
    with torch.no_grad():
        assert torch.allclose(theirs(images), ours, atol=1e-5)
    theirs.save_pretrained(str(tmp_path / "again"))
    other = RunConfig(method=LoraMethod(), train=config.train)
    back = load_adapter(import_peft(tmp_path / "again", other, tmp_path / "back") / "adapter")
    before = load_adapter(run_dir / "adapter")
    assert set(back.config.method.targets) == set(config.method.targets)  # type: ignore[union-attr]
    assert back.tensors.keys() == before.tensors.keys()
    assert all(torch.equal(before.tensors[key], back.tensors[key]) for key in before.tensors)
    assert back.head_width == before.head_width


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_a_stock_lora_comes_in_with_the_same_logits(name: str, runs: Runs, tmp_path: Path) -> None:
    """Exported, and so with query and value as blocks of one LoRA on the fused linear."""
    run_dir, config = runs(name)
    _, ours = logits(run_dir, config)
    out = export(run_dir, "peft-lora", tmp_path / "lora")
    if name == "dora":  # ranks differ between linears, which one method of ours does not have
        with pytest.raises(AdapterError, match="rank_pattern"):
            import_peft(out, config, tmp_path / "back")
        return
    back = import_peft(out, config, tmp_path / "back")
    method = load_adapter(back / "adapter").config.method
    assert method == LoraMethod(rank=6, alpha=16.0, targets=("query", "key", "value"))
    found = logits(back, config.model_copy(update={"method": method}))[1]
    assert torch.allclose(found, ours, atol=1e-5)


@pytest.mark.parametrize("use_dora", [False, True])
def test_a_lora_that_peft_made_comes_in_with_the_same_logits(
    use_dora: bool, runs: Runs, tmp_path: Path
) -> None:
    _, config = runs("lora")
    targets = ["qkv", "fc1"]
    lora = LoraConfig(r=3, lora_alpha=6, target_modules=targets, use_dora=use_dora, modules_to_save=["head"])
    model = get_peft_model(stock_model(config), lora)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    model.eval().save_pretrained(str(tmp_path / "lora"))
    back = import_peft(tmp_path / "lora", config, tmp_path / "back")
    method = load_adapter(back / "adapter").config.method
    images, ours = logits(back, config.model_copy(update={"method": method}))
    with torch.no_grad():
        assert torch.allclose(model(images), ours, atol=1e-5)


@pytest.mark.parametrize("ending", ["lora_B.weight", "lora_A.weight"])
def test_a_lora_without_one_of_its_tensors_is_not_imported(ending: str, runs: Runs, tmp_path: Path) -> None:
    run_dir, config = runs("lora")
    path = export(run_dir, "peft-lora", tmp_path / "lora") / "adapter_model.safetensors"
    tensors = load_file(path)
    del tensors[f"base_model.model.blocks.1.attn.qkv.{ending}"]
    save_file(tensors, path)
    with pytest.raises(AdapterError, match=r"no whole LoRA of vit-digits: blocks\.1\.attn\.qkv"):
        import_peft(tmp_path / "lora", config, tmp_path / "back")


def test_other_folders_of_peft_are_not_imported(runs: Runs, tmp_path: Path) -> None:
    _, config = runs("lora")
    with pytest.raises(AdapterError, match="no folder of PEFT"):
        import_peft(tmp_path, config, tmp_path / "back")
    some = LoraConfig(r=2, target_modules=["qkv"], layers_to_transform=[1], layers_pattern="blocks")
    get_peft_model(stock_model(config), some).save_pretrained(str(tmp_path / "some"))
    with pytest.raises(AdapterError, match=r"in every block, but blocks\.0\.attn\.qkv"):
        import_peft(tmp_path / "some", config, tmp_path / "back")
    other = IA3Config(target_modules=["qkv"], feedforward_modules=[])
    get_peft_model(stock_model(config), other).save_pretrained(str(tmp_path / "ia3"))
    with pytest.raises(AdapterError, match=r"must hold one of lora, replora, doran, hora, but holds .*IA3"):
        import_peft(tmp_path / "ia3", config, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_method_that_peft_has_itself_has_no_folder_of_ours(runs: Runs, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="PEFT has no lora of ours, only replora, doran"):
        export(runs("lora")[0], "peft", tmp_path / "peft")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_llama_goes_to_peft_and_comes_back_whole(tmp_path: Path) -> None:
    folder = save_tiny_llama(tmp_path / "base")
    run = RunConfig(
        backbone=BackboneConfig(name=f"hf/{folder}"),
        method=ReploraMethod(rank=3, hidden=5, plain_targets=("up", "output")),
        task=CommonsenseTask(root=tmp_path),
    )
    backbone = load_backbone(run.backbone, precision="fp32", device="cpu")
    generator = torch.Generator().manual_seed(0)
    start = adapt(backbone, run.method).initial(run.method, generator)
    stirred = {n: (t + 0.1 * torch.randn(t.shape, generator=generator)).float() for n, t in start.items()}
    adapter = SavedAdapter(run, backbone.fingerprint, 0, stirred)
    save_adapter(tmp_path / "run" / "adapter", adapter)
    export(tmp_path / "run", "peft", tmp_path / "peft")
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "peft")
    tokens = torch.randint(400, (2, 6))
    with torch.no_grad():
        ours = merge(adapter, backbone)(input_ids=tokens).logits
        assert torch.allclose(theirs(input_ids=tokens).logits, ours, atol=1e-5)
    back = load_adapter(import_peft(tmp_path / "peft", run, tmp_path / "back") / "adapter")
    assert back.config.method == run.method.model_copy(update={"plain_targets": ("output", "up")})
    assert back.tensors.keys() == stirred.keys()
    assert all(torch.equal(back.tensors[key], stirred[key]) for key in stirred)
