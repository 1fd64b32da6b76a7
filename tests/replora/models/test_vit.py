"""The project's own ViT computes what timm's computes, for the class token and without timm."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from timm.models import VisionTransformer
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from replora.models.digits import build_digits_vit
from replora.models.timm_vit import run_own_blocks
from replora.models.vit import VitBlock, unfuse_short_attention

SIZES: dict[str, Any] = {"img_size": 8, "patch_size": 2, "in_chans": 1, "embed_dim": 64, "depth": 4}


def stock(**options: Any) -> VisionTransformer:
    """timm's own, with weights that leave nothing out, in fp64."""
    torch.manual_seed(0)
    model = VisionTransformer(**SIZES, num_heads=4, num_classes=5, **options).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def outcome(model: nn.Module) -> dict[str, Tensor]:
    """Logits of some images, and the gradients of all weights."""
    images = torch.randn(3, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    model.zero_grad(set_to_none=True)
    logits = model(images)
    logits.square().sum().backward()
    grads = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    return {"logits": logits.detach(), **grads}


@pytest.mark.parametrize("short", [False, True], ids=["fused", "short"])
def test_digits_vit_is_timms_on_the_same_weights(short: bool) -> None:
    theirs, ours = stock(), build_digits_vit(5).double()
    ours.load_state_dict(theirs.state_dict())
    if short:
        unfuse_short_attention(ours)
    torch.testing.assert_close(outcome(ours), outcome(theirs), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("short", [False, True], ids=["fused", "short"])
@pytest.mark.parametrize(
    "options",
    [
        {"init_values": 0.5, "reg_tokens": 2},
        {"qk_norm": True, "scale_attn_norm": True},
        {"global_pool": "avg", "class_token": False},
    ],
    ids=["scales-and-registers", "norms", "mean-of-tokens"],
)
def test_own_blocks_compute_what_timms_blocks_compute(options: dict[str, Any], short: bool) -> None:
    model = stock(**options)
    expected = outcome(model)
    run_own_blocks(model)
    if short:
        unfuse_short_attention(model)
    assert all(isinstance(block, VitBlock) for block in model.blocks)
    torch.testing.assert_close(outcome(model), expected, rtol=1e-10, atol=1e-12)


def test_blocks_of_another_kind_stay_timms() -> None:
    class Other(Block):
        """Not the plain block."""

    model = stock(block_fn=Other)
    run_own_blocks(model)
    assert all(isinstance(block, Other) for block in model.blocks)


def test_digits_needs_neither_timm_nor_torchs_compiler() -> None:
    code = """
import sys, sweeps.host, replora.train.loop
from replora.config import RunConfig
from replora.train.engine import load_base
from replora.tasks.load import load_task
load_base(RunConfig(backbone={"name": "vit-digits", "weights": "random"}), "cpu")
load_task(RunConfig().task, precision="fp32", device="cpu")
print({"timm", "torchvision", "torch._dynamo", "transformers"} & set(sys.modules))
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout == "set()\n"
