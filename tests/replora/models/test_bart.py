"""BART as a backbone gives what transformers gives, from folders as they are published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BartForConditionalGeneration

from replora.config import BackboneConfig
from replora.errors import CheckpointError, ConfigError, MachineError
from replora.methods.sites import group_targets
from replora.models.bart import bart_config, bart_features, bart_targets, build_bart
from replora.models.base import Backbone
from replora.models.load import load_backbone
from replora.models.shapes import BART, TargetShape
from tests.replora.tiny_bart import save_tiny_bart, tiny_bart, tiny_bart_config

SOURCE = torch.tensor([[0, 40, 41, 42, 2], [0, 50, 2, 1, 1]])
MASK = (SOURCE != 1).long()
TARGET = torch.tensor([[0, 60, 61, 2], [0, 70, 2, 1]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bart(tmp_path_factory.mktemp("bart") / "bart")


def load(folder: Path, **fields: Any) -> Backbone:
    config = BackboneConfig(name=f"hf/{folder}", **fields)
    return load_backbone(config, precision="fp32", device="cpu")


def texts() -> dict[str, Tensor]:
    return {"source": SOURCE, "mask": MASK, "target": TARGET, "scored": TARGET != 1}


@torch.no_grad()
def test_losses_are_those_of_transformers(folder: Path) -> None:
    backbone = load(folder)
    stock = BartForConditionalGeneration.from_pretrained(folder).eval()
    labels = TARGET.masked_fill(TARGET == 1, -100)
    logits = stock(input_ids=SOURCE, attention_mask=MASK, labels=labels).logits
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(TARGET.shape)
    found = bart_features(backbone.model, texts())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("beams", [1, 3])
@torch.no_grad()
def test_generated_tokens_are_those_of_transformers(folder: Path, beams: int) -> None:
    backbone = load(folder)
    stock: Any = BartForConditionalGeneration.from_pretrained(folder).eval()
    wanted = {"beams": torch.full((2,), beams), "new_tokens": torch.full((2,), 6)}
    found = bart_features(backbone.model, {"source": SOURCE, "mask": MASK, **wanted})
    for row in range(2):
        alone = SOURCE[row][MASK[row].bool()].unsqueeze(0)
        expected = stock.generate(
            alone, num_beams=beams, do_sample=False, max_new_tokens=6, forced_eos_token_id=None
        )[0, 1:].tolist()
        assert found[row].tolist() == expected + [2] * (6 - len(expected))


def test_a_search_is_not_what_the_folder_says(folder: Path, tmp_path: Path) -> None:
    """bart-base's config.json forbids repeated trigrams; the task's search does not."""
    model = load(save_tiny_bart(tmp_path / "b", no_repeat_ngram_size=2, num_beams=4)).model
    wanted = {"beams": torch.ones(2), "new_tokens": torch.full((2,), 12)}
    batch = {"source": SOURCE, "mask": MASK, **wanted}
    with torch.no_grad():
        assert torch.equal(bart_features(model, batch), bart_features(load(folder).model, batch))


def test_a_checkpoint_without_the_head_loads(folder: Path, tmp_path: Path) -> None:
    """facebook/bart-base was saved so: no `model.` before names, and no final_logits_bias."""
    bare = save_tiny_bart(tmp_path / "bare")
    tensors = load_file(bare / "model.safetensors")
    names = {name: name.removeprefix("model.") for name in tensors if name != "final_logits_bias"}
    save_file({bare: tensors[name] for name, bare in names.items()}, bare / "model.safetensors")
    with torch.no_grad():
        found, expected = (bart_features(load(each).model, texts()) for each in (bare, folder))
    assert torch.equal(found, expected)


def test_embeddings_stay_tied(folder: Path) -> None:
    model: Any = load(folder).model
    tied = [model.model.encoder.embed_tokens, model.model.decoder.embed_tokens, model.lm_head]
    assert all(each.weight is model.model.shared.weight for each in tied)


@pytest.mark.parametrize("name", list(BART))
def test_targets_and_sizes_equal_the_known_shape(name: str) -> None:
    model = build_bart(bart_config(name, None), torch.float32, torch.device("meta"))
    shape, targets = BART[name], bart_targets(model)
    assert [TargetShape(t.name, t.block, t.inputs, t.outputs, t.heads) for t in targets] == list(
        shape.targets
    )
    assert sum(weight.numel() for weight in model.parameters()) == shape.base_parameters
    assert all(isinstance(model.get_submodule(target.module), nn.Linear) for target in targets)
    assert len({target.block for target in targets}) == 18


def test_random_weights_need_no_folder_and_are_always_the_same() -> None:
    config = BackboneConfig(name="bart-base", weights="random")
    fingerprints = {load_backbone(config, precision="bf16", device="cpu").fingerprint for _ in range(2)}
    assert len(fingerprints) == 1


def test_a_folder_of_another_size_is_not_bart_base(folder: Path) -> None:
    config = BackboneConfig(name="bart-base", weights=str(folder))
    with pytest.raises(ConfigError, match=r"is not bart-base: .*'d_model': 32"):
        load_backbone(config, precision="fp32", device="cpu")


def test_pretrained_without_a_network_asks_for_a_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MachineError, match=r"backbone\.weights of a named model to the folder"):
        load_backbone(BackboneConfig(name="bart-base"), precision="fp32", device="cpu")


def test_a_bias_of_the_logits_is_refused(tmp_path: Path) -> None:
    biased = save_tiny_bart(tmp_path / "biased")
    tensors = load_file(biased / "model.safetensors")
    save_file({**tensors, "final_logits_bias": torch.ones(1, 300)}, biased / "model.safetensors")
    with pytest.raises(CheckpointError, match="final_logits_bias must be zero"):
        load(biased)


def test_a_tensor_too_few_is_named(tmp_path: Path) -> None:
    short = save_tiny_bart(tmp_path / "short")
    tensors = load_file(short / "model.safetensors")
    del tensors["model.encoder.layers.1.fc1.weight"]
    save_file(tensors, short / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"encoder\.layers\.1\.fc1\.weight is missing"):
        load(short)


def test_other_tasks_and_features_are_refused(folder: Path) -> None:
    model = load(folder).model
    with pytest.raises(ConfigError, match="BART takes a source and a target, but the task gives image"):
        bart_features(model, {"image": torch.zeros(1)})
    with pytest.raises(ConfigError, match="features of width 9, but the backbone takes text alone"):
        bart_features(model, {**texts(), "visual": torch.zeros(2, 3, 9)})
    sees = build_bart(tiny_bart_config(visual_features=7), torch.float32, torch.device("cpu"))
    with pytest.raises(
        ConfigError, match="gives text alone, but the backbone takes visual features of width 7"
    ):
        bart_features(sees, texts())


def visual(features: int = 7) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "visual": torch.randn(2, 3, features, generator=generator),
        "boxes": torch.rand(2, 3, 4, generator=generator),
        "image": torch.tensor([[0, 1, 0], [0, 0, 1]]),
        "visual_mask": torch.tensor([[1, 1, 0], [1, 1, 1]]),
    }


@torch.no_grad()
def test_visual_features_are_seen_where_their_mask_says(folder: Path, tmp_path: Path) -> None:
    model = load(save_tiny_bart(tmp_path / "vl", visual_features=7)).model
    batch = {**texts(), **visual()}
    before, without = bart_features(model, batch), bart_features(load(folder).model, texts())
    assert not torch.allclose(before, without)
    for name in ("visual", "boxes", "image"):
        changed = batch[name].clone()
        changed[0, 2] = 1 - changed[0, 2]  # hidden by the mask
        assert torch.equal(bart_features(model, {**batch, name: changed}), before)
        changed[0, 1] = 1 - changed[0, 1]
        after = bart_features(model, {**batch, name: changed})
        assert not torch.allclose(after[0], before[0])
        assert torch.equal(after[1], before[1])
    nothing = {**batch, "visual_mask": torch.zeros(2, 3, dtype=torch.long)}
    torch.testing.assert_close(bart_features(model, nothing), without)


def test_a_visual_embedding_in_the_folder_is_read(tmp_path: Path) -> None:
    path = save_tiny_bart(tmp_path / "vl", visual_features=7)
    start: Any = load(path).model
    tensors = load_file(path / "model.safetensors")
    own = {f"visual.{name}": each + 1 for name, each in start.visual.state_dict().items()}
    save_file({**tensors, **own}, path / "model.safetensors")
    read: Any = load(path).model
    assert all(torch.equal(each, own[f"visual.{name}"]) for name, each in read.visual.state_dict().items())
    assert json.loads((path / "config.json").read_text())["visual_features"] == 7


def test_biases_of_the_tiny_model_count() -> None:
    assert all(each.any() for name, each in tiny_bart().named_parameters() if name.endswith("bias"))


def test_blocks_of_encoder_and_decoder_are_adapted_alike() -> None:
    """Modules of a cross-attention block have another order by name than those of an encoder block."""
    groups = group_targets([t for t in bart_targets(tiny_bart()) if t.name in ("query", "down")])
    both = next(group for group in groups if len(group.sites) == 2)
    assert both.blocks == (0, 1, 3, 5)
    for site in both.sites:
        assert {module.rpartition(".")[2] for module in site.modules} in ({"q_proj"}, {"fc2"})
