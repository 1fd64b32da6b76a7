"""The planner's prediction against the measured peak of resident memory on a CPU, 22 settings.

Methods x K x batch x length on small LLaMAs, BARTs, ViTs and Video Swins with random weights, each in fresh
processes of three training steps, over the memory of the imports alone. Twice: with glibc told to hand freed
memory back (`returned`: what is held is counted, not what was), and as trials run, with freed memory kept
(`kept`).

Rows:
    p95-error       ratio = 95th percentile of |predicted - measured| / measured, in percent, of the
                    `returned` peaks: at most 5
    covered         ratio = settings whose `kept` peak lies within prediction and reserve / all: at least 1
    p95-calibrated  ratio = the percentile for the `kept` peaks, where the first setting of each model has
                    calibrated the others: at most 5
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks._common import ROOT, Row, finish, is_quick, machine, run_cold, say

MIB = 2**20
FIVE = ["query", "key", "value", "up", "down"]
#: Width, MLP, blocks, heads, words.
LLAMAS = {
    "llama-a": (256, 704, 6, 4, 4_000),
    "llama-b": (512, 1_408, 8, 8, 8_000),
    "llama-c": (768, 2_048, 4, 12, 2_000),
}
#: Width, MLP, layers on each side, heads, words.
BARTS = {"bart-a": (512, 2_048, 3, 8, 8_000)}
LORA, REPLORA = {"name": "lora"}, {"name": "replora"}
CLIPS = {"name": "video-folder", "root": "clips", "frames": 8, "image_size": 112}
TEXTS = {"name": "text-to-text", "root": "texts", "source_tokens": 96, "target_tokens": 48}


@dataclass(frozen=True)
class Case:
    """One setting; `tokens` is 0 where the backbone, or the task, says what an example has."""

    model: str
    method: dict[str, Any]
    batch: int
    tokens: int = 0
    slots: int = 1
    precision: str = "fp32"
    task: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """In words."""
        parts = [self.model, self.method["name"], f"K={self.slots}", f"batch {self.batch}"]
        return ", ".join([*parts, *([f"{self.tokens} tokens"] if self.tokens else []), self.precision])


CASES = [
    Case("llama-a", LORA, 8, 256),
    Case("llama-a", REPLORA, 4, 256, slots=2),
    Case("llama-a", {"name": "lora", "targets": FIVE}, 8, 128),
    Case("llama-a", {"name": "dora"}, 8, 256),
    Case("llama-a", {"name": "lora", "dropout": 0.1}, 8, 256),
    Case("llama-a", LORA, 16, 256, precision="bf16"),
    Case("llama-b", REPLORA, 2, 256),
    Case("llama-b", LORA, 4, 128, slots=2),
    Case("llama-b", {"name": "lora", "targets": FIVE}, 1, 512),
    Case("llama-c", REPLORA, 2, 512),
    Case("llama-c", {"name": "full"}, 4, 128),
    Case("vit-ti16", REPLORA, 8),
    Case("vit-ti16", LORA, 4, slots=4),
    Case("vit-ti16", {"name": "full"}, 8),
    Case("vit-s16", LORA, 4),
    Case("vit-s16", {"name": "dora"}, 4, slots=2),
    Case("vit-b16", REPLORA, 2),
    Case("vit-s16", {"name": "adapter"}, 4),
    Case("video-swin-t", REPLORA, 2, task=CLIPS),
    Case("video-swin-t", {"name": "dora"}, 1, slots=2, task=CLIPS),
    Case("bart-a", REPLORA, 16, task=TEXTS),
    Case("bart-a", {"name": "lora", "dropout": 0.1}, 4, slots=2, task=TEXTS),
]


@dataclass(frozen=True)
class Found:
    """Bytes over the imports alone."""

    case: Case
    predicted: int
    passing: int
    reserve: int
    returned: int
    kept: int

    @property
    def error(self) -> float:
        """Of the prediction, in percent of what was measured."""
        return 100 * (self.predicted - self.returned) / self.returned


def measured(case: Case, folder: Path) -> Found:
    """The two peaks of a setting."""
    train = {"batch": case.batch, "steps": 10**6, "eval_every": 10**6, "checkpoint_every": 10**6}
    run = {
        "backbone": {"name": _backbone(case.model, folder), "weights": "random"},
        "method": case.method,
        "train": {**train, "precision": case.precision},
        **({} if case.task is None else {"task": case.task}),
    }
    path = folder / "case.json"
    path.write_text(json.dumps({"run": run, "tokens": case.tokens, "slots": case.slots}))
    peaks = {}
    for mode, extra in (("returned", {"MALLOC_MMAP_THRESHOLD_": "65536"}), ("kept", {})):
        words = ["-m", "benchmarks._calibration_process", str(path), mode]
        peaks[mode] = json.loads(run_cold(words, 1, ROOT, extra).stdout.splitlines()[-1])
    first = peaks["returned"]
    found = Found(
        case,
        first["predicted"],
        first["passing"],
        first["reserve"],
        first["peak"],
        peaks["kept"]["peak"],
    )
    say(
        f"  {case.name}: predicted {found.predicted / MIB:.0f} MiB, measured {found.returned / MIB:.0f} "
        f"({found.error:+.1f} %); as trials run {found.kept / MIB:.0f}, "
        f"{(found.kept - found.predicted) / found.passing:+.2f} of a pass"
    )
    return found


def _backbone(model: str, folder: Path) -> str:
    """A vision model's name, or the folder of a small LLaMA's or BART's config.json."""
    if model in BARTS:
        return _folder(model, folder, _bart(*BARTS[model]))
    return _folder(model, folder, _llama(*LLAMAS[model])) if model in LLAMAS else model


def _folder(model: str, folder: Path, described: dict[str, Any]) -> str:
    place = folder / model
    place.mkdir(exist_ok=True)
    (place / "config.json").write_text(json.dumps(described))
    return f"hf/{place}"


def _bart(width: int, hidden: int, depth: int, heads: int, words: int) -> dict[str, Any]:
    described = {"model_type": "bart", "d_model": width, "vocab_size": words, "max_position_embeddings": 512}
    described |= dict.fromkeys(("encoder_layers", "decoder_layers"), depth)
    described |= dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), hidden)
    return described | dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), heads)


def _llama(width: int, hidden: int, depth: int, heads: int, words: int) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "vocab_size": words,
        "tie_word_embeddings": False,
    }


def p95(values: list[float]) -> float:
    """95th percentile: the smallest value that at least 95 % of them do not exceed."""
    ordered = sorted(values)
    return ordered[-(-95 * len(ordered) // 100) - 1]


def calibrated_errors(found: list[Found]) -> list[float]:
    """Errors in percent of the settings of each model but its first, which calibrates them."""
    shares: dict[str, float] = {}
    errors = []
    for each in found:
        if each.case.model not in shares:
            shares[each.case.model] = (each.kept - each.predicted) / each.passing
            continue
        predicted = each.predicted + shares[each.case.model] * each.passing
        errors.append(100 * abs(predicted - each.kept) / each.kept)
    return errors


def main() -> None:
    cases = [Case("vit-ti16", LORA, 1), Case("vit-ti16", LORA, 2)] if is_quick(__doc__) else CASES
    with tempfile.TemporaryDirectory() as folder:
        found = [measured(case, Path(folder)) for case in cases]
    error = p95([abs(each.error) for each in found])
    within = sum(each.kept <= each.predicted + each.reserve for each in found)
    calibrated = p95(calibrated_errors(found))
    finish(
        [
            Row("p95-error", error, None, "percent", error, 5.0, machine()),
            Row("covered", within, len(found), "settings", within / len(found), 1.0, machine()),
            Row("p95-calibrated", calibrated, None, "percent", calibrated, 5.0, machine()),
        ]
    )


if __name__ == "__main__":
    main()
