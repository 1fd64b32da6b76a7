"""What the benchmarks of a GPU share: bases with random weights, steps of ours and of PEFT, times and memory.

`--quick` runs all of it on a tiny LLaMA on the CPU, in bf16 as on a GPU, so that nothing is first tried on a
rented machine.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model

from benchmarks._calibration_process import RandomTask
from benchmarks._common import Row, interleaved, machine, median, say
from cluster.anatomy import anatomy_of
from cluster.memory import GIB, Setting, memory_of
from replora.config import BackboneConfig, RunConfig
from replora.methods.structure import copy_structure
from replora.models.base import Backbone
from replora.models.load import load_backbone
from replora.train.footprint import peak_memory, reset_peak
from replora.train.pack import Pack

__all__ = ["Bench", "bench", "card", "device_or_exit", "memory_row", "peak_flops", "seconds", "widest"]

#: Dense bf16 FLOP/s by part of the card's name, the first that fits (recalled from the makers' data sheets).
PEAKS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "A10G": 70e12,
    "L40S": 362e12,
    "L4": 121e12,
    "cpu": 1e12,  # no CPU's: it only lets --quick go through the same code
}
_TINY = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "vocab_size": 256}
_LONG = 10**9

Step = Callable[[], object]


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

    def run(self, method: Mapping[str, Any], batch: int, micro: int | None = None) -> RunConfig:
        """The run that is measured: `batch` texts a step, `micro` of them in a pass."""
        train: dict[str, Any] = {"batch": batch, "micro_batch": micro, "steps": _LONG}
        train |= {"eval_every": _LONG, "checkpoint_every": _LONG, "precision": "bf16"}
        backbone = {"name": self.backbone.name, "weights": "random"}
        return RunConfig.model_validate({"backbone": backbone, "method": method, "train": train})

    def ours(self, method: Mapping[str, Any], batch: int, slots: int = 1, micro: int | None = None) -> Step:
        """A step of a pack of trials of one method."""
        config = self.run(method, batch, micro)
        pack = Pack(config, self.backbone, self._task, slots)
        for seed in range(slots):
            pack.admit(f"trial-{seed}", config.model_copy(update={"seed": seed}), self.folder)
        return pack.step

    def peft(self, batch: int, rank: int, *, dora: bool) -> Step:
        """A step of stock PEFT on the same weights, with the same loss, in a plain loop.

        Its adapters are in bf16, the fastest that PEFT has: no casts, half the optimizer's bytes. Ours train
        in fp32, so this errs against us.
        """
        targets = ["q_proj", "v_proj"]
        lora = LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, use_dora=dora)
        adapted: Any = inject_adapter_in_model(lora, copy_structure(self.backbone.model)).to(torch.bfloat16)
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
    """A named LLaMA with random weights in bf16, or a `tiny` one."""
    if name == "tiny":
        described = {**_TINY, "model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 4}
        (folder / "config.json").write_text(json.dumps({**described, "tie_word_embeddings": False}))
        name = f"hf/{folder}"
    config = BackboneConfig(name=name, weights="random")
    return Bench(load_backbone(config, precision="bf16", device=device), tokens, folder)


def seconds(
    sides: Mapping[str, Callable[[], Step]], device: torch.device, *, quick: bool
) -> dict[str, float]:
    """Median seconds a step of each side; the sides are made and measured in turn."""
    steps, repeats = (1, 1) if quick else (10, 3)

    def measured(make: Callable[[], Step]) -> float:
        free()
        return _seconds_a_step(make(), device, steps)

    figures = interleaved({name: partial(measured, make) for name, make in sides.items()}, repeats)
    return {name: median(values) for name, values in figures.items()}


def _seconds_a_step(step: Step, device: torch.device, steps: int) -> float:
    """Mean time of a step after two that warm up."""
    for _ in range(2):
        step()
    _wait(device)
    started = time.perf_counter()
    for _ in range(steps):
        step()
    _wait(device)
    return (time.perf_counter() - started) / steps


def widest(make: Callable[[int], Step], most: int) -> int:
    """The largest of `most`, `most / 2`, ... with which a step fits the card's memory.

    Raises:
        torch.OutOfMemoryError: If even 1 does not.
    """
    while True:
        try:
            make(most)()
        except torch.OutOfMemoryError:
            if most == 1:
                raise
            most //= 2
        else:
            return most
        finally:
            free()


def free() -> None:
    """Gives back what steps that are gone held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def memory_row(name: str, model: Bench, run: RunConfig, slots: int) -> Row:
    """The plan's bytes of a pack's tensors against the most that torch allocated for two steps of it.

    The plan's runtime and reserve are left out, because torch does not allocate them; so is the cache of
    evaluations, of which there are none here.
    """
    free()
    reset_peak(model.device)
    train = run.train
    step = model.ours(run.method.model_dump(), train.batch, slots, train.micro_batch)
    step()
    step()
    setting = Setting(train.micro_batch or train.batch, model.tokens, slots)
    memory = memory_of(run, anatomy_of(run), setting, "gpu")
    planned, measured = memory.model - memory.evaluation, _peak(model.device)
    error = 100 * abs(planned - measured) / measured
    return Row(f"{name}-memory", planned / GIB, measured / GIB, "GiB", error, 5.0, card(model.device))


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    found = peak_memory(device)
    assert found is not None, "resident memory can be read on Linux only"
    return int(found["held"])


def peak_flops(device: torch.device) -> float | None:
    """Dense bf16 FLOP/s of the card; None where they are not known."""
    name = card(device)
    return next((flops for part, flops in PEAKS.items() if part in name), None)


def card(device: torch.device) -> str:
    """The GPU's name, or the CPU's."""
    return machine() if device.type == "cpu" else f"gpu: {torch.cuda.get_device_name(device)}"


def device_or_exit(*, quick: bool) -> torch.device:
    """The GPU; the CPU for `--quick`. Ends with status 3 where a full run has no GPU."""
    if quick:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        print("This benchmark needs a CUDA device; --quick tries its code on a CPU.", file=sys.stderr)
        sys.exit(3)
    device = torch.device("cuda")
    if peak_flops(device) is None:
        say(f"The peak of {card(device)} is not in benchmarks/_gpu.py: no share of it is given.")
    return device


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
