"""Video Swin computes what torchvision computes, in the layers that an adapter can reach."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import video
from torchvision.models.video.swin_transformer import SwinTransformer3d

from replora.cache import hash_tensors
from replora.config import BackboneConfig
from replora.errors import ConfigError, MachineError
from replora.models.load import load_backbone
from replora.models.shapes import VIDEO_SWIN, TargetShape
from replora.models.video import video_architecture, video_targets
from replora.models.windows import WindowAttention, call_linears

#: Frames, height and width: padded windows, one window for all, shifted windows, an axis that fits one.
SIZES = [(8, 32, 32), (5, 30, 37), (2, 12, 12), (4, 40, 16), (9, 64, 64)]


def stock(classes: int = 3) -> SwinTransformer3d:
    """torchvision's own model of the size of video-swin-nano."""
    torch.manual_seed(0)
    shape = VIDEO_SWIN["video-swin-nano"]
    model = SwinTransformer3d(
        patch_size=list(shape.patch),
        embed_dim=shape.embed,
        depths=list(shape.depths),
        num_heads=list(shape.heads),
        window_size=list(shape.window),
        num_classes=classes,
    ).eval()
    for name, parameter in model.named_parameters():
        if "position_bias" in name:
            nn.init.normal_(parameter)  # 0.02 at the start would hide a wrong bias
    return model


def clip(size: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_output_and_gradients_equal_torchvisions_to_the_bit(
    size: tuple[int, ...], dtype: torch.dtype
) -> None:
    theirs, ours = stock().to(dtype), stock().to(dtype)
    call_linears(ours)
    assert sum(isinstance(module, WindowAttention) for module in ours.modules()) == 4
    outputs = [model(clip(size, dtype)) for model in (theirs, ours)]
    assert torch.equal(*outputs)
    for output in outputs:
        output.square().sum().backward()
    wanted = {name: each.grad for name, each in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_swin3d_t_equals_torchvisions_to_the_bit() -> None:
    torch.manual_seed(0)
    theirs = video.swin3d_t(weights=None, num_classes=3).eval()
    before = theirs(clip((8, 112, 112))[:1])
    call_linears(theirs)
    with torch.no_grad():
        assert torch.equal(theirs(clip((8, 112, 112))[:1]), before)


def test_names_of_weights_stay_torchvisions() -> None:
    ours = stock()
    call_linears(ours)
    assert list(ours.state_dict()) == list(stock().state_dict())


@pytest.mark.parametrize("name", ["video-swin-nano", "video-swin-b"])
def test_targets_and_sizes_equal_the_known_shape(name: str) -> None:
    with torch.device("meta"):
        model = video_architecture(name).build()
    shape, targets = VIDEO_SWIN[name], video_targets(model)
    assert [TargetShape(t.name, t.block, t.inputs, t.outputs, t.heads) for t in targets] == list(
        shape.targets
    )
    assert sum(weight.numel() for weight in model.parameters()) == shape.base_parameters
    assert all(isinstance(model.get_submodule(target.module), nn.Linear) for target in targets)


def test_a_file_of_torchvisions_weights_loads_without_its_head(tmp_path: Path) -> None:
    model = stock(classes=400)
    save_file(dict(model.state_dict()), tmp_path / "swin.safetensors")
    config = BackboneConfig(name="video-swin-nano", weights=str(tmp_path / "swin.safetensors"))
    backbone = load_backbone(config, precision="fp32", device="cpu")
    model.head = nn.Identity()
    assert torch.equal(
        backbone.features(backbone.model, {"video": clip((8, 32, 32))}), model(clip((8, 32, 32)))
    )
    assert backbone.width == 32
    assert backbone.fingerprint == hash_tensors(dict(model.state_dict()))


def test_nano_has_no_published_weights() -> None:
    with pytest.raises(MachineError, match="video-swin-nano has no published weights"):
        load_backbone(BackboneConfig(name="video-swin-nano"), precision="fp32", device="cpu")


def test_a_task_of_images_is_refused() -> None:
    config = BackboneConfig(name="video-swin-nano", weights="random")
    backbone = load_backbone(config, precision="fp32", device="cpu")
    with pytest.raises(ConfigError, match="takes clips, but the task gives image"):
        backbone.features(backbone.model, {"image": torch.zeros(1, 3, 8, 8)})


def test_a_vit_refuses_clips() -> None:
    backbone = load_backbone(BackboneConfig(weights="random"), precision="fp32", device="cpu")
    with pytest.raises(ConfigError, match="takes images, but the task gives video"):
        backbone.features(backbone.model, {"video": clip((8, 32, 32))})
