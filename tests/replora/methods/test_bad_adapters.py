"""Adapter folders that are damaged, tampered with or of another base: a clear error, nothing is loaded."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from replora.config import (
    BackboneConfig,
    MethodConfig,
    OptimConfig,
    ReploraMethod,
    RunConfig,
    TrainConfig,
)
from replora.errors import AdapterError
from replora.methods.bake import bake, merge
from replora.methods.exchange import export
from replora.methods.folder import SavedAdapter, load_adapter, save_adapter
from replora.models.load import load_backbone
from replora.train.loop import evaluate, train

RUN = RunConfig(
    backbone=BackboneConfig(weights="random"),
    method=ReploraMethod(rank=3, hidden=5),
    optim=OptimConfig(lr=1e-2),
    train=TrainConfig(steps=2, batch=8),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(RUN, folder)
    return folder


@pytest.fixture
def run_dir(trained: Path, tmp_path: Path) -> Path:
    """A finished run of one's own to damage."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def refused(run_dir: Path, message: str) -> None:
    """Neither evaluation nor any export takes the folder, and none leaves anything behind."""
    with pytest.raises(AdapterError, match=message):
        evaluate(run_dir, "val")
    for kind in ("merged", "peft-lora"):
        out = run_dir.parent / "out" / kind
        with pytest.raises(AdapterError, match=message):
            export(run_dir, kind, out)
        assert not out.parent.exists()


def describe(run_dir: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = run_dir / "adapter" / "adapter_config.json"
    described = json.loads(path.read_text())
    change(described)
    path.write_text(json.dumps(described))


def retensor(run_dir: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Changes the tensors and makes the count of numbers fit them."""
    path = run_dir / "adapter" / "adapter.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    held = sum(tensor.numel() for tensor in tensors.values())
    describe(run_dir, lambda described: described.update(parameters=held))


def test_the_untouched_folder_is_taken(run_dir: Path) -> None:
    assert evaluate(run_dir, "val")
    assert export(run_dir, "merged", run_dir.parent / "out").is_dir()


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_truncated_file_of_tensors(run_dir: Path, kept: int) -> None:
    path = run_dir / "adapter" / "adapter.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    refused(run_dir, r"adapter\.safetensors: cannot be read")


def test_a_header_that_promises_more_than_there_is(run_dir: Path) -> None:
    path = run_dir / "adapter" / "adapter.safetensors"
    path.write_bytes(struct.pack("<Q", 2**60) + path.read_bytes()[8:])
    refused(run_dir, r"adapter\.safetensors: cannot be read")


def test_a_missing_file_of_tensors(run_dir: Path) -> None:
    (run_dir / "adapter" / "adapter.safetensors").unlink()
    refused(run_dir, r"adapter\.safetensors: cannot be read")


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter.safetensors"])
@pytest.mark.parametrize("write", [torch.save, lambda data, path: path.write_bytes(pickle.dumps(data))])
def test_a_pickle_is_not_opened(run_dir: Path, name: str, write: Callable[[object, Path], object]) -> None:
    marker = run_dir / "opened"
    (run_dir / "adapter" / "adapter.safetensors").unlink()
    write(Trap(marker), run_dir / "adapter" / name)
    refused(run_dir, rf"{name} is a pickle: it can run code and is not opened")
    assert not marker.exists()


class Trap:
    """Leaves a mark where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ('{"format": "replora-adapter/1", ', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "format must be 'replora-adapter/1', but got 'list'"),
        (
            '{"format": "replora-adapter/9"}',
            "format must be 'replora-adapter/1', but got 'replora-adapter/9'",
        ),
        ('{"format": "replora-adapter/1"}', "damaged: 'run'"),
        ('{"peft_type": "LORA"}', "This is a folder of PEFT"),
        ('{"format": "x", "format": "replora-adapter/1"}', "'format' is there twice"),
    ],
)
def test_a_damaged_description(run_dir: Path, text: str, message: str) -> None:
    (run_dir / "adapter" / "adapter_config.json").write_text(text)
    refused(run_dir, message)


def test_a_description_with_an_unknown_field_of_a_run(run_dir: Path) -> None:
    describe(run_dir, lambda described: described["run"]["method"].update(rnk=4))
    refused(run_dir, r"(?s)adapter_config.json: damaged.*rnk")


def test_a_description_of_another_size(run_dir: Path) -> None:
    describe(run_dir, lambda described: described["run"]["method"].update(rank=4))
    refused(run_dir, r"adapter tensor generator\.A\.seed: must be \[4, 1, 4\], but got \[4, 1, 3\]")


def test_a_description_of_another_head(run_dir: Path) -> None:
    describe(run_dir, lambda described: described.update(head_width=3))
    with pytest.raises(AdapterError, match=r"adapter tensor head\.bias: must be \[3\], but got \[5\]"):
        export(run_dir, "merged", run_dir.parent / "out")


def test_tensors_of_another_adapter(run_dir: Path) -> None:
    path = run_dir / "adapter" / "adapter.safetensors"
    tensors = load_file(path)
    save_file({name: tensor for name, tensor in tensors.items() if "head" not in name}, path)
    refused(run_dir, "the two files do not belong together")


def test_a_missing_tensor(run_dir: Path) -> None:
    retensor(run_dir, lambda tensors: tensors.pop("generator.A.seed"))
    refused(run_dir, r"adapter tensor generator\.A\.seed: must be \[4, 1, 3\], but got nothing")


@pytest.mark.parametrize("name", ["extra", "../../escaped", "/etc/escaped", "base.blocks.0.attn.qkv.weight"])
def test_an_unknown_tensor(run_dir: Path, name: str) -> None:
    before = set(run_dir.parent.parent.rglob("*escaped*"))
    retensor(run_dir, lambda tensors: tensors.update({name: torch.zeros(2)}))
    refused(run_dir, rf"adapter tensor {name}: must be nothing, but got \[2\]")
    assert set(run_dir.parent.parent.rglob("*escaped*")) == before


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_number_that_is_none(run_dir: Path, value: float) -> None:
    retensor(run_dir, lambda tensors: tensors["generator.B.seed"].fill_(value))
    refused(run_dir, r"generator\.B\.seed must hold finite numbers")


def test_tensors_of_another_kind(run_dir: Path) -> None:
    retensor(run_dir, lambda tensors: tensors.update({"head.bias": tensors["head.bias"].int()}))
    refused(run_dir, r"head\.bias must hold finite numbers, but has others \(torch\.int32\)")


def test_another_base_of_the_same_shape(run_dir: Path) -> None:
    describe(run_dir, lambda described: described.update(backbone_fingerprint="sha256:0123456789abcdef"))
    refused(run_dir, "was trained on the base sha256:0123456789abcdef")


def test_another_base_of_another_shape(run_dir: Path) -> None:
    describe(run_dir, lambda described: described["run"]["backbone"].update(name="vit-ti16"))
    refused(run_dir, "but vit-ti16 .*is sha256:")


@pytest.mark.parametrize(
    "method", [ReploraMethod(rank=3, hidden=5), ReploraMethod(rank=3, composition="noised")]
)
def test_another_base_is_refused_by_baking_and_merging(method: MethodConfig, tmp_path: Path) -> None:
    adapter = SavedAdapter(RUN.model_copy(update={"method": method}), "sha256:0123456789abcdef", 0, {})
    save_adapter(tmp_path / "adapter", adapter)
    backbone = load_backbone(RUN.backbone, precision="fp32", device="cpu")
    for use in (bake, merge):
        with pytest.raises(AdapterError, match="give the same weights"):
            use(load_adapter(tmp_path / "adapter"), backbone)
