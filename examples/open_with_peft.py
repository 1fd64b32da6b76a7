"""Open an exported adapter with stock PEFT and compare it with the run that it came from.

    python examples/open_with_peft.py RUN_DIR PEFT_DIR

RUN_DIR is a finished run, PEFT_DIR what `replora export RUN_DIR --as peft-lora --out PEFT_DIR` wrote. Both
are evaluated on the validation split. Ends with status 1 if they differ.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor

from replora.methods.folder import load_adapter
from replora.models.load import load_backbone
from replora.tasks.base import Batch
from replora.tasks.load import load_task
from replora.train.loop import evaluate

TOLERANCE = 1e-5  # of the mean loss, relative: fp32 sums in another order


def open_with_peft(run_dir: Path, peft_dir: Path) -> dict[str, float]:
    """Validation metrics of the exported adapter, computed by PEFT on the untouched backbone."""
    adapter = load_adapter(run_dir / "adapter")
    base = load_backbone(adapter.config.backbone, precision="fp32", device="cpu").model
    base.reset_classifier(adapter.head_width)  # type: ignore[operator]  # a ViT
    model = PeftModel.from_pretrained(base, str(peft_dir)).eval()
    task = load_task(adapter.config.task, precision="fp32", device="cpu")

    def forward(batch: Batch) -> Tensor:
        logits: Tensor = model(batch["image"][0])
        return logits[None]  # one slot

    with torch.inference_mode():
        return task.evaluate(forward, 1, "val")[0]


def main() -> int:
    """Compare, print both, and say by the exit status whether they agree."""
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    run_dir, peft_dir = map(Path, sys.argv[1:])
    ours, theirs = evaluate(run_dir, "val"), open_with_peft(run_dir, peft_dir)
    agree = all(abs(theirs[key] - value) <= TOLERANCE * max(1.0, abs(value)) for key, value in ours.items())
    for key, value in ours.items():
        print(f"validation {key}: {value:.6f} here, {theirs[key]:.6f} with stock PEFT")
    print(f"{peft_dir} {'opens with stock PEFT and agrees' if agree else 'DIFFERS from ' + str(run_dir)}")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
