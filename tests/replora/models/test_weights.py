"""Weights from files: any head, whole or not at all, and clear words where they do not fit."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from replora.config import BackboneConfig
from replora.errors import CheckpointError, MachineError
from replora.models.base import Backbone
from replora.models.digits import build_digits_vit
from replora.models.load import load_backbone
from replora.models.timm_vit import timm_architecture
from replora.models.weights import random_weights

TIMM = "timm/vit_tiny_patch16_224.augreg_in21k"


def load(weights: Path | str, name: str = "vit-digits") -> Backbone:
    return load_backbone(BackboneConfig(name=name, weights=str(weights)), precision="fp32", device="cpu")


def seven_classes() -> dict[str, Tensor]:
    """A checkpoint of the digits ViT with a head for seven classes."""
    return random_weights(lambda: build_digits_vit(7))


class Code:
    """Would run code when unpickled."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return print, ("unpickled",)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": {f"module.{name}": value for name, value in state.items()}},
        lambda state: {"state_dict": {}, "state_dict_ema": {f"_orig_mod.{n}": v for n, v in state.items()}},
    ],
    ids=["bare", "state_dict", "data-parallel", "ema-compiled"],
)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before-1.6"])
def test_torch_checkpoint_gives_its_weights_without_its_head(
    tmp_path: Path, wrap: Callable[[Any], Any], zipped: bool
) -> None:
    state = seven_classes()
    torch.save(wrap(state), tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    found = load(tmp_path / "w.pth").model.state_dict()
    assert found.keys() == state.keys() - {"head.weight", "head.bias"}
    assert not [name for name in found if not torch.equal(found[name], state[name])]


def test_safetensors_round_trip_keeps_the_fingerprint(tmp_path: Path) -> None:
    before = load("pretrained")
    save_file(before.model.state_dict(), tmp_path / "w.safetensors")
    assert load(tmp_path / "w.safetensors").fingerprint == before.fingerprint


def test_weights_stay_mapped_and_the_file_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(seven_classes(), path)
    before = path.read_bytes()
    backbone = load(path)
    assert str(path) in Path("/proc/self/maps").read_text()
    for parameter in backbone.model.parameters():
        parameter.data.fill_(1.0)
    assert path.read_bytes() == before


def truncated_safetensors(path: Path) -> Path:
    save_file(seven_classes(), path.with_suffix(".safetensors"))
    content = path.with_suffix(".safetensors").read_bytes()
    path.with_suffix(".safetensors").write_bytes(content[: len(content) // 2])
    return path.with_suffix(".safetensors")


def truncated_torch(path: Path) -> Path:
    torch.save(seven_classes(), path)
    path.write_bytes(path.read_bytes()[:50_000])
    return path


def empty(path: Path) -> Path:
    path.write_bytes(b"")
    return path


def pickled_code(path: Path) -> Path:
    path.write_bytes(pickle.dumps({"head": Code()}, protocol=2))
    return path


def saved_code(path: Path) -> Path:
    torch.save({"w": Code()}, path)
    return path


def a_list(path: Path) -> Path:
    torch.save([torch.ones(2)], path)
    return path


def text(path: Path) -> Path:
    path.write_text("not weights")
    return path


@pytest.mark.parametrize(
    "make", [truncated_safetensors, truncated_torch, empty, pickled_code, saved_code, a_list, text]
)
def test_file_that_is_not_whole_weights_is_a_checkpoint_error(
    tmp_path: Path, make: Callable[[Path], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    path = make(tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=str(path)):
        load(path)
    assert "unpickled" not in capfd.readouterr().out


def test_missing_file_says_what_weights_can_be(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"(?s)nope\.pth is not a file.*pretrained, random, or the path"
    ):
        load(tmp_path / "nope.pth")


def test_every_tensor_that_does_not_fit_is_named(tmp_path: Path) -> None:
    state = seven_classes()
    state["norm.weight"] = torch.ones(65)
    state["blocks.0.extra"] = state.pop("cls_token")
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "w.safetensors")
    for fault in (
        "norm.weight must be [64], but got [65]",
        "cls_token is missing",
        "blocks.0.extra is not a tensor of the backbone",
    ):
        assert fault in str(caught.value)


def test_checkpoint_of_another_size_is_refused_in_few_lines(tmp_path: Path) -> None:
    save_file(seven_classes(), tmp_path / "w.safetensors")
    with pytest.raises(
        CheckpointError, match=r"cls_token must be \[1, 1, 192\], but got \[1, 1, 64\]"
    ) as caught:
        load(tmp_path / "w.safetensors", "vit-ti16")
    assert len(str(caught.value).splitlines()) == 8


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the Hugging Face hub, offline, and an empty cache of our own."""
    monkeypatch.setenv("REPLORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_pretrained_weights_without_a_network_say_to_give_a_file(hub: Path) -> None:
    with pytest.raises(MachineError, match=r"set backbone\.weights to a local"):
        load("pretrained", "vit-ti16")


def test_pretrained_weights_are_kept_after_the_first_time(hub: Path) -> None:
    state = random_weights(timm_architecture(TIMM).build)
    folder = hub / "models--timm--vit_tiny_patch16_224.augreg_in21k"
    (folder / "snapshots" / "0").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0")
    head = {"head.weight": torch.zeros(5, 192), "head.bias": torch.zeros(5)}
    path = folder / "snapshots" / "0" / "model.safetensors"
    save_file({**state, **head}, path)
    first = load("pretrained", "vit-ti16").fingerprint
    path.unlink()
    assert load("pretrained", "vit-ti16").fingerprint == first == load("random", TIMM).fingerprint
