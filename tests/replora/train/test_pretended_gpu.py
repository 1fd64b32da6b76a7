"""A step on a GPU that is only pretended: torch's fake tensors compute nothing, but refuse mixed devices.

Backward passes cannot be pretended (autograd asks the driver), and who looks at a number sees a one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from benchmarks._gpu import bench
from replora.models import language
from replora.train.pack import Pack

METHODS: dict[str, dict[str, Any]] = {
    "replora": {"rank": 8, "hidden": 8, "dropout": 0.1, "plain_targets": ["key", "up", "down"]},
    "dora": {"rank": 8},
    "hora": {"rank": 8},
    "adapter": {},
    "prefix": {},
    "full": {},
}


def ones(shape: tuple[int, ...]) -> Any:
    """Nested lists of ones."""
    return [ones(shape[1:]) for _ in range(shape[0])] if shape else 1.0


@pytest.fixture
def updates(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[set[str]]]:
    """Devices of the tensors of each fused update; the rest is refused where it is computed."""
    seen: list[set[str]] = []
    real_generator = torch.Generator

    def backward(self: torch.Tensor) -> None:
        assert self.requires_grad
        assert self.device.type == "cuda"

    def update(*lists: list[torch.Tensor], **settings: object) -> None:
        del settings
        seen.append({each.device.type for tensors in lists for each in tensors})

    monkeypatch.setattr(torch, "Generator", lambda device="cpu": real_generator("cpu"))
    monkeypatch.setattr(torch.Tensor, "backward", backward)
    monkeypatch.setattr(torch.autograd, "backward", lambda *tensors: None)
    monkeypatch.setattr(Pack, "_collect_gradients", lambda pack: None)
    monkeypatch.setattr(torch, "_fused_adamw_", update)
    monkeypatch.setattr(language, "hash_samples", lambda tensors: "fake")
    monkeypatch.setattr(FakeTensor, "item", lambda self: 1)
    monkeypatch.setattr(FakeTensor, "tolist", lambda self: ones(tuple(self.shape)))
    monkeypatch.setattr(
        torch.Tensor, "nonzero", lambda self: torch.arange(self.numel(), device=self.device).unsqueeze(1)
    )
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield seen


@pytest.mark.parametrize("method", METHODS)
def test_a_step_of_a_pack_keeps_to_its_device(method: str, updates: list[set[str]], tmp_path: Path) -> None:
    model = bench("tiny", 8, tmp_path, torch.device("cuda"))
    step = model.ours({"name": method, **METHODS[method]}, batch=2, slots=2)
    assert step() == []
    assert updates == [{"cuda"}, {"cuda"}]
