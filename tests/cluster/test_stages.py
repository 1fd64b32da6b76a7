"""Activations of backbones with unlike layers equal the bytes that autograd saves on a CPU.

Measured: Video Swin with whole and with padded windows, BART and VL-BART, tiny and random. BART's hidden
states that its head reads are saved as well; the planner counts them with the head's temporaries.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from cluster.activations import activation_bytes
from cluster.anatomy import anatomy_of
from replora.config import BackboneConfig, RunConfig
from replora.models.base import Backbone
from replora.models.language import language_targets
from replora.models.load import load_backbone
from tests.cluster.saved import saved_bytes
from tests.replora.tiny_bart import save_bart_tokenizer, tiny_bart_config

SLOTS, EXAMPLES, SOURCE, TARGET, VISUAL, FEATURES = 2, 3, 24, 12, 6, 20
ALL = ["query", "key", "value", "output", "up", "down"]
METHODS: dict[str, dict[str, Any]] = {
    "query-value": {"name": "replora", "rank": 4, "hidden": 8},
    "all-targets": {"name": "lora", "rank": 4, "targets": ALL},
    "dropout": {"name": "dora", "rank": 4, "targets": ALL, "dropout": 0.1},
    "series": {"name": "adapter", "bottleneck": 8},
    "parallel": {"name": "adapter", "bottleneck": 8, "targets": ["output", "up", "key"], "form": "parallel"},
    "prefix": {"name": "prefix", "tokens": 4},
    "full": {"name": "full"},
}


def run(backbone: str, method: str, task: dict[str, Any], precision: str = "fp32") -> RunConfig:
    """A run of a method."""
    return RunConfig.model_validate(
        {
            "backbone": {"name": backbone, "weights": "random"},
            "method": METHODS[method],
            "task": {"root": "/data", **task},
            "train": {"precision": precision},
        }
    )


def expected(config: RunConfig) -> int:
    """By formula, for the batches of this file."""
    anatomy = anatomy_of(config)
    rows = SLOTS * EXAMPLES * (anatomy.tokens or 0)
    return activation_bytes(config, anatomy, rows, recompute=False)


@cache
def backbone_of(name: str, precision: Any) -> Backbone:
    """Loaded once for all methods."""
    config = BackboneConfig(name=name, weights="random")
    return load_backbone(config, precision=precision, device="cpu")


@pytest.mark.parametrize(
    ("method", "size", "precision"),
    [*((method, 32, "fp32") for method in METHODS), ("query-value", 40, "fp32"), ("all-targets", 32, "bf16")],
)
def test_a_video_swin_saves_what_the_formula_says(method: str, size: int, precision: str) -> None:
    config = run(
        "video-swin-nano", method, {"name": "video-folder", "frames": 4, "image_size": size}, precision
    )
    backbone = backbone_of("video-swin-nano", precision)
    clip = torch.zeros(SLOTS, EXAMPLES, 3, 4, size, size, dtype=next(backbone.model.parameters()).dtype)
    measured = saved_bytes(backbone, config.method, {"video": clip})
    assert expected(config) == pytest.approx(measured, rel=0.02)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """Folders of a BART and of a VL-BART, without weights, by the width of their visual features."""
    found = {}
    for width in (0, FEATURES):
        folder = tmp_path_factory.mktemp("bart")
        save_bart_tokenizer(folder)
        described = tiny_bart_config(d_model=64, encoder_ffn_dim=192, decoder_ffn_dim=192)
        described.update({"visual_features": width})
        described.save_pretrained(folder)
        found[width] = f"hf/{folder}"
    return found


@pytest.mark.parametrize(
    ("method", "features", "precision"),
    [
        *((method, 0, "fp32") for method in METHODS),
        *((method, FEATURES, "fp32") for method in ("query-value", "dropout", "full")),
        ("query-value", 0, "bf16"),
    ],
)
def test_a_bart_saves_what_the_formula_says(
    folders: dict[int, str], method: str, features: int, precision: str
) -> None:
    visual = VISUAL if features else 0
    task = {"name": "text-to-text", "source_tokens": SOURCE, "target_tokens": TARGET, "visual_tokens": visual}
    config = run(folders[features], method, task, precision)
    backbone = backbone_of(folders[features], precision)
    measured = saved_bytes(backbone, config.method, texts(visual))
    states = (2 if precision == "bf16" else 4) * SLOTS * EXAMPLES * TARGET * backbone.width
    assert expected(config) + states == pytest.approx(measured, rel=0.02)


def texts(visual: int) -> dict[str, Tensor]:
    """Sources of which one is padded, targets, and visual features."""
    shape = (SLOTS, EXAMPLES)
    mask = torch.ones(*shape, SOURCE, dtype=torch.long)
    mask[0, 0, -1] = 0
    batch = {
        "source": torch.randint(3, 300, (*shape, SOURCE)),
        "mask": mask,
        "target": torch.randint(3, 300, (*shape, TARGET)),
        "scored": torch.ones(*shape, TARGET, dtype=torch.bool),
    }
    if not visual:
        return batch
    return batch | {
        "visual": torch.zeros(*shape, visual, FEATURES),
        "boxes": torch.zeros(*shape, visual, 4),
        "image": torch.zeros(*shape, visual, dtype=torch.long),
        "visual_mask": torch.ones(*shape, visual, dtype=torch.long),
    }


@pytest.mark.parametrize(
    "described",
    [
        {"model_type": "qwen2", "tie_word_embeddings": True},
        {"model_type": "qwen2"},  # transformers' default: its head is its own
        {"model_type": "mistral", "head_dim": 32, "tie_word_embeddings": False},
    ],
    ids=["biases-and-tied", "silent", "wide-heads"],
)
def test_sizes_of_a_folder_are_those_of_its_model(described: dict[str, Any], tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    content = {**sizes, "intermediate_size": 96, "vocab_size": 101, **described}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))
    anatomy = anatomy_of(run(f"hf/{tmp_path}", "query-value", {"name": "commonsense"}))
    assert anatomy.base_parameters == sum(each.numel() for each in model.parameters())
    assert [(each.name, each.inputs, each.outputs, each.heads) for each in anatomy.targets] == [
        (each.name, each.inputs, each.rows[1], each.heads) for each in language_targets(model)
    ]
