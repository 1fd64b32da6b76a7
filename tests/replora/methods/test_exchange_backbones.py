"""What leaves the project from Video Swin and BART, in the hands of torchvision, transformers and PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models.video import SwinTransformer3d
from transformers import AutoModelForSeq2SeqLM

from replora.config import (
    BackboneConfig,
    DoraMethod,
    FullMethod,
    LoraMethod,
    MethodConfig,
    OptimConfig,
    ReploraMethod,
    RunConfig,
    TextToTextTask,
    TrainConfig,
    VideoFolderTask,
)
from replora.errors import AdapterError
from replora.methods.exchange.folders import export
from replora.methods.folder import load_adapter
from replora.models.load import load_backbone
from replora.models.shapes import VIDEO_SWIN
from replora.tasks.load import load_task
from replora.train.loop import evaluate, train
from replora.train.model import SlotModel
from tests.replora.made_clips import save_clips
from tests.replora.tiny_bart import FEATURES, save_pairs, save_tiny_bart

TRAIN = TrainConfig(steps=6, batch=4, eval_every=6)
OPTIM = OptimConfig(lr=1e-2)
MLP = ("up", "down")
ATTENTION: dict[str, MethodConfig] = {
    "replora": ReploraMethod(rank=3, hidden=5, plain_targets=("up",)),
    "dora": DoraMethod(rank=3, targets=("query", "value", "output", "down")),
    "full": FullMethod(),
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPLORA_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips, a BART with texts, and a VL-BART with pictures."""
    root = tmp_path_factory.mktemp("data")
    save_clips(root / "clips")
    save_tiny_bart(root / "bart")
    save_pairs(root / "texts")
    save_tiny_bart(root / "vl", visual_features=FEATURES)
    save_pairs(root / "pictures", visual=True)
    return root


def video_run(data: Path, method: MethodConfig) -> RunConfig:
    task = VideoFolderTask(root=data / "clips", image_size=32, frames=4, stride=1)
    backbone = BackboneConfig(name="video-swin-nano", weights="random")
    return RunConfig(backbone=backbone, task=task, method=method, optim=OPTIM, train=TRAIN)


def bart_run(data: Path, method: MethodConfig, *, visual: bool = False) -> RunConfig:
    task = TextToTextTask(
        root=data / ("pictures" if visual else "texts"),
        source_tokens=24,
        target_tokens=6,
        visual_tokens=6 if visual else 0,
    )
    backbone = BackboneConfig(name=f"hf/{data / ('vl' if visual else 'bart')}")
    return RunConfig(backbone=backbone, task=task, method=method, optim=OPTIM, train=TRAIN)


def outputs(run_dir: Path, config: RunConfig) -> tuple[dict[str, Tensor], Tensor]:
    """A validation batch, and our own forward pass over it."""
    backbone = load_backbone(config.backbone, precision="fp32", device="cpu")
    task = load_task(config.task, precision="fp32", device="cpu", processor=backbone.processor)
    batch = task.split("val").take(torch.arange(3), None)
    model = SlotModel(backbone, task, config)
    parameters = model.one(load_adapter(run_dir / "adapter").tensors, config.method)
    model.adaptation.prepare(parameters, [config.method])
    with torch.no_grad():
        return batch, model.forward({n: each.unsqueeze(0) for n, each in batch.items()}, parameters)[0]


def stock_swin() -> SwinTransformer3d:
    shape = VIDEO_SWIN["video-swin-nano"]
    sizes: list[Any] = [[*shape.patch], shape.embed, [*shape.depths], [*shape.heads], [*shape.window]]
    return SwinTransformer3d(*sizes, num_classes=3).eval()


@pytest.mark.parametrize("method", ATTENTION.values(), ids=ATTENTION)
def test_merged_video_swin_is_torchvisions(data: Path, method: MethodConfig, tmp_path: Path) -> None:
    config = video_run(data, method)
    train(config, tmp_path / "run")
    batch, ours = outputs(tmp_path / "run", config)
    export(tmp_path / "run", "merged", tmp_path / "merged")
    stock = stock_swin()
    stock.load_state_dict(load_file(tmp_path / "merged" / "model.safetensors"))
    with torch.no_grad():
        torch.testing.assert_close(stock(batch["video"]), ours, rtol=1e-4, atol=1e-5)
    assert "SwinTransformer3d([2, 4, 4], 16, [2, 2], [2, 4], [2, 4, 4]" in readme(tmp_path / "merged")


def readme(folder: Path) -> str:
    return (folder / "README.md").read_text()


def test_lora_on_torchvisions_attention_is_refused_and_on_its_mlp_opens_in_peft(
    data: Path, tmp_path: Path
) -> None:
    train(video_run(data, LoraMethod(rank=3)), tmp_path / "attention")
    with pytest.raises(AdapterError, match=r"attention reads the weights of query, value by itself"):
        export(tmp_path / "attention", "peft-lora", tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    config = video_run(data, LoraMethod(rank=3, targets=MLP))
    train(config, tmp_path / "mlp")
    batch, ours = outputs(tmp_path / "mlp", config)
    export(tmp_path / "mlp", "peft-lora", tmp_path / "peft")
    stock = stock_swin()
    base = load_backbone(config.backbone, precision="fp32", device="cpu").model
    stock.head = nn.Identity()
    stock.load_state_dict(base.state_dict())
    stock.head = nn.Linear(stock.num_features, 3)
    wrapped = PeftModel.from_pretrained(stock, tmp_path / "peft").eval()
    with torch.no_grad():
        torch.testing.assert_close(wrapped(batch["video"]), ours, rtol=1e-4, atol=1e-5)


def losses(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Of each token, as transformers computes them."""
    labels = batch["target"].masked_fill(~batch["scored"], -100)
    given = {"input_ids": batch["source"], "attention_mask": batch["mask"], "labels": labels}
    with torch.no_grad():
        logits = model(**given).logits
    found = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return found.view(labels.shape)


@pytest.mark.parametrize("method", ATTENTION.values(), ids=ATTENTION)
def test_merged_bart_is_transformers(data: Path, method: MethodConfig, tmp_path: Path) -> None:
    config = bart_run(data, method)
    train(config, tmp_path / "run")
    batch, ours = outputs(tmp_path / "run", config)
    merged = export(tmp_path / "run", "merged", tmp_path / "merged")
    stock = AutoModelForSeq2SeqLM.from_pretrained(merged).eval()
    torch.testing.assert_close(losses(stock, batch), ours, rtol=1e-4, atol=1e-5)
    again = config.model_copy(update={"backbone": BackboneConfig(name=f"hf/{merged}")})
    backbone = load_backbone(again.backbone, precision="fp32", device="cpu")
    with torch.no_grad():
        torch.testing.assert_close(backbone.features(backbone.model, batch), ours, rtol=1e-4, atol=1e-5)
    assert "AutoModelForSeq2SeqLM" in readme(merged)


@pytest.mark.parametrize(
    "method", [ReploraMethod(rank=3, hidden=5), DoraMethod(rank=3)], ids=["replora", "dora"]
)
def test_query_and_value_of_a_bart_open_in_peft(data: Path, method: MethodConfig, tmp_path: Path) -> None:
    config = bart_run(data, method)
    train(config, tmp_path / "run")
    batch, ours = outputs(tmp_path / "run", config)
    export(tmp_path / "run", "peft-lora", tmp_path / "peft")
    stock = AutoModelForSeq2SeqLM.from_pretrained(data / "bart").eval()
    plain = losses(stock, batch)
    wrapped = PeftModel.from_pretrained(stock, tmp_path / "peft").eval()
    torch.testing.assert_close(losses(wrapped, batch), ours, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(ours, plain, rtol=1e-3)


def test_merged_vl_bart_keeps_all_that_was_trained(data: Path, tmp_path: Path) -> None:
    config = bart_run(data, LoraMethod(rank=3), visual=True)
    result = train(config, tmp_path / "run")
    batch, ours = outputs(tmp_path / "run", config)
    merged = export(tmp_path / "run", "merged", tmp_path / "merged")
    backbone = load_backbone(BackboneConfig(name=f"hf/{merged}"), precision="fp32", device="cpu")
    with torch.no_grad():
        torch.testing.assert_close(backbone.features(backbone.model, batch), ours, rtol=1e-4, atol=1e-5)
    trained = load_adapter(tmp_path / "run" / "adapter").tensors
    name = "model.decoder.layers.1.fc2.bias"
    assert torch.equal(load_file(merged / "model.safetensors")[name], trained[f"beside.{name}"])
    assert "visual.features.weight" in load_file(merged / "model.safetensors")
    assert evaluate(tmp_path / "run", "val")["loss"] == pytest.approx(result.metrics["val_loss"])
    with pytest.raises(AdapterError, match="biases and its visual embedding were trained beside"):
        export(tmp_path / "run", "peft-lora", tmp_path / "peft")
