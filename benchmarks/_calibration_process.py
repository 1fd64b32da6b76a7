"""One process of `calibration.py`: `python -m benchmarks._calibration_process SETTING.json returned|kept`.

Prints one line of JSON: bytes of resident memory at the peak over the imports alone (`peak`), of the
imports alone (`imports`), what the planner predicts (`tensors`, of which `passing` come and go; `heap`, the
share of them that this process's heap should hold on top; `reserve`), and the processor time of a step.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm  # noqa: F401 - part of what is imported before anything is measured
import torch
import transformers  # noqa: F401
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaForCausalLM  # noqa: F401

from cluster.anatomy import anatomy_of
from cluster.memory import LIBRARIES, Setting, memory_of
from replora.config import RunConfig, TextToTextTask, VideoFolderTask
from replora.models.load import load_backbone
from replora.tasks.base import SplitName
from replora.train import heap
from replora.train.footprint import peak_memory, reset_peak
from replora.train.pack import Pack
from replora.train.process import prepare_process

CPU = torch.device("cpu")
CLASSES = 5
STEPS = 6


class _Split:
    """Random examples, made when taken."""

    def __init__(self, shapes: Mapping[str, tuple[tuple[int, ...], int]]) -> None:
        self._shapes = shapes

    def __len__(self) -> int:
        return 64

    def take(self, indices: Tensor, generator: torch.Generator | None) -> dict[str, Tensor]:
        count = len(indices)
        made = {}
        for name, (shape, below) in self._shapes.items():
            made[name] = torch.randint(below, (count, *shape)) if below else torch.randn(count, *shape)
        for texts in ("tokens", "target"):
            if texts in made:
                made["scored"] = torch.ones_like(made[texts], dtype=torch.bool)
        if "source" in made:
            made["mask"] = torch.ones_like(made["source"])
            made["mask"][0, -1] = 0  # one text is shorter, or the mask would be left out
        return made


class RandomTask:
    """Texts or labelled images without meaning; nothing is evaluated."""

    metric, direction, data_hash = "val_loss", "minimize", "random"

    def __init__(self, shapes: Mapping[str, tuple[tuple[int, ...], int]]) -> None:
        self.head_width = CLASSES if "label" in shapes else 0
        self._shapes = shapes

    def split(self, name: SplitName) -> _Split:
        return _Split(self._shapes)

    def loss(self, output: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        if not self.head_width:
            return output.mean((1, 2))
        losses = F.cross_entropy(output.flatten(0, 1), batch["label"].flatten(), reduction="none")
        return losses.view(output.shape[:2]).mean(1)


def measure(case: Mapping[str, Any], folder: Path) -> dict[str, float]:
    config = RunConfig.model_validate(case["run"])
    slots = int(case["slots"])
    reset_peak(CPU)
    imports = _held()
    backbone = load_backbone(config.backbone, precision=config.train.precision, device=CPU)
    task: Any = RandomTask(shapes_of(config, int(case["tokens"])))
    pack = Pack(config, backbone, task, slots)
    for seed in range(slots):
        pack.admit(f"trial-{seed}", config.model_copy(update={"seed": seed}), folder)
    seconds = []
    for _ in range(STEPS):
        started = time.process_time()
        pack.step()
        seconds.append(time.process_time() - started)
    anatomy = anatomy_of(config)
    micro = config.train.micro_batch or config.train.batch
    tokens = int(case["tokens"]) or anatomy.tokens or 1
    memory = memory_of(config, anatomy, Setting(micro, tokens, slots), "cpu", heap=heap.heap_here())
    # No evaluation is run, so what it needs beyond training is not part of this prediction.
    passing = memory.passing - memory.evaluation
    return {
        "peak": _held() - imports,
        "imports": imports,
        "tensors": memory.model - memory.evaluation + LIBRARIES[anatomy.family],
        "passing": passing,
        "heap": memory.heap * passing / memory.passing,
        "reserve": memory.reserve * passing / memory.passing,
        "seconds": statistics.median(seconds[2:]),  # the first ones make kernels and touch memory
    }


def shapes_of(config: RunConfig, tokens: int) -> dict[str, tuple[tuple[int, ...], int]]:
    """Of each tensor of an example, with the number of its values, 0 for numbers."""
    task = config.task
    if isinstance(task, VideoFolderTask):
        return {"video": ((3, task.frames, task.image_size, task.image_size), 0), "label": ((), CLASSES)}
    if isinstance(task, TextToTextTask):
        words = anatomy_of(config).vocabulary
        return {"source": ((task.source_tokens,), words), "target": ((task.target_tokens,), words)}
    if tokens:
        return {"tokens": ((tokens,), anatomy_of(config).vocabulary)}
    return {"image": ((3, 224, 224), 0), "label": ((), CLASSES)}


def _held() -> int:
    found = peak_memory(CPU)
    assert found is not None, "resident memory can be read on Linux only"
    return int(found["held"])


def main() -> None:
    path = Path(sys.argv[1])
    if sys.argv[2] == "kept":
        prepare_process(1)
    torch.set_num_threads(1)
    print(json.dumps(measure(json.loads(path.read_text()), path.parent)), flush=True)


if __name__ == "__main__":
    main()
