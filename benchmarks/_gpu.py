"""What the benchmarks of a GPU share: bases with random weights, steps of ours and of PEFT, times and memory.

`--quick` runs all of it on a tiny LLaMA on the CPU, so that nothing is first tried on a rented machine.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model

from benchmarks._calibration_process import RandomTask
from replora.config import BackboneConfig, RunConfig
from replora.methods.structure import copy_structure
from replora.models.base import Backbone
from replora.models.load import load_backbone
from replora.train.pack import Pack

__all__ = ["LENGTH", "PEAKS", "Bench", "bench", "device_or_exit", "seconds_a_step"]

LENGTH = 1_024
#: Dense bf16 FLOP/s by part of the card's name (recalled from the makers' data sheets).
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "A10G": 70e12}
_TINY = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "vocab_size": 256}
_LONG = 10**9


class Bench:
    """A base on a device, with steps on random texts."""

    def __init__(self, backbone: Backbone, tokens: int, folder: Path) -> None:
        self.backbone, self.tokens, self.folder = backbone, tokens, folder
        self.device = next(backbone.model.parameters()).device
        config: Any = backbone.model.config
        self._task: Any = _OnDevice({"tokens": ((tokens,), int(config.vocab_size))}, self.device)

    @property
    def parameters(self) -> int:
        """P."""
        return sum(weight.numel() for weight in self.backbone.model.parameters())

    def run(self, method: Mapping[str, Any], batch: int) -> RunConfig:
        """The run that is measured."""
        precision = "fp32" if self.device.type == "cpu" else "bf16"
        train = {"batch": batch, "steps": _LONG, "eval_every": _LONG, "checkpoint_every": _LONG}
        return RunConfig.model_validate(
            {
                "backbone": {"name": self.backbone.name, "weights": "random"},
                "method": method,
                "train": {**train, "precision": precision},
            }
        )

    def ours(self, method: Mapping[str, Any], batch: int, slots: int = 1) -> Callable[[], object]:
        """A step of a pack of trials of one method."""
        config = self.run(method, batch)
        pack = Pack(config, self.backbone, self._task, slots)
        for seed in range(slots):
            pack.admit(f"trial-{seed}", config.model_copy(update={"seed": seed}), self.folder)
        return pack.step

    def peft(self, batch: int, rank: int, *, dora: bool) -> Callable[[], object]:
        """A step of stock PEFT on the same weights, with the same loss, in a plain loop."""
        model = copy_structure(self.backbone.model)
        targets = ["q_proj", "v_proj"]
        adapted: Any = inject_adapter_in_model(
            LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, use_dora=dora), model
        )
        trained = [each for each in adapted.parameters() if each.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
        split = self._task.split("train")

        def step() -> None:
            losses = self.backbone.features(adapted, split.take(torch.arange(batch), None))
            losses.mean().backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step


class _OnDevice(RandomTask):
    """Random texts where the base is."""

    def __init__(self, shapes: Mapping[str, tuple[tuple[int, ...], int]], device: torch.device) -> None:
        super().__init__(shapes)
        self._device = device

    def split(self, name: Any) -> Any:
        split = super().split(name)
        take = split.take
        split.take = lambda indices, generator: {  # type: ignore[method-assign]
            key: value.to(self._device) for key, value in take(indices, generator).items()
        }
        return split


def bench(name: str, tokens: int, folder: Path, device: torch.device) -> Bench:
    """A named LLaMA with random weights in bf16, or `tiny` in fp32."""
    if name == "tiny":
        described = {**_TINY, "model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 4}
        (folder / "config.json").write_text(json.dumps({**described, "tie_word_embeddings": False}))
        name = f"hf/{folder}"
    precision: Any = "fp32" if device.type == "cpu" else "bf16"
    config = BackboneConfig(name=name, weights="random")
    return Bench(load_backbone(config, precision=precision, device=device), tokens, folder)


def seconds_a_step(step: Callable[[], object], device: torch.device, steps: int) -> float:
    """Mean time of a step after two that warm up."""
    for _ in range(2):
        step()
    _wait(device)
    started = time.perf_counter()
    for _ in range(steps):
        step()
    _wait(device)
    return (time.perf_counter() - started) / steps


def device_or_exit(*, quick: bool) -> torch.device:
    """The GPU; the CPU for `--quick`. Ends with status 3 where a full run has no GPU."""
    if quick:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        print("This benchmark needs a CUDA device; --quick tries its code on a CPU.", file=sys.stderr)
        sys.exit(3)
    return torch.device("cuda")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
