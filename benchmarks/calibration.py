"""The planner's prediction against the measured peak of resident memory on a CPU, 22 settings.

Methods x K x batch x length on small LLaMAs, BARTs, ViTs and Video Swins with random weights, each in fresh
processes of a few training steps, over the memory of the imports alone. Three times: as trials run
(`jemalloc`: freed memory is kept), as they run where there is no jemalloc (`glibc`: likewise), and with glibc
told to hand freed memory back (`returned`: the tensors alone).

Rows:
    p95-error       ratio = 95th percentile of |predicted - measured| / measured, in percent, as trials run:
                    at most 5
    p95-tensors     ratio = the same for the `returned` peaks, where a heap holds nothing on top: at most 5
    p95-calibrated  ratio = the same as trials run, where the first setting of each model has calibrated the
                    others: at most 5
    covered         ratio = peaks of both heaps that lie within prediction and reserve / all: at least 1
    step-time       ratio = processor time of a step with jemalloc / with glibc, median: at most 1.02
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks._common import ROOT, Row, finish, is_quick, machine, median, run_cold, say
from cluster.memory import believed
from replora.train import heap

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
#: Environment of each mode.
MODES = {
    "jemalloc": heap.environment(),
    "glibc": {},
    "returned": {"MALLOC_MMAP_THRESHOLD_": "65536"},
}
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
        method = self.method["name"] + (" with dropout" if "dropout" in self.method else "")
        parts = [self.model, method, f"K={self.slots}", f"batch {self.batch}"]
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
    """What one process held, and what it should have held, in bytes over the imports alone."""

    peak: float
    imports: float
    tensors: float
    passing: float
    heap: float
    reserve: float
    seconds: float

    def error(self, held: float | None = None) -> float:
        """Of the prediction, in percent of what was measured; `held` by the heap, as predicted if None."""
        return 100 * (self.tensors + (self.heap if held is None else held) - self.peak) / self.peak

    @property
    def share(self) -> float:
        """What the heap held, as a share of the tensors that come and go."""
        return (self.peak - self.tensors) / self.passing

    @property
    def is_covered(self) -> bool:
        """Whether the plan would have had room for it."""
        return self.peak <= self.tensors + self.heap + self.reserve


def measured(case: Case, folder: Path) -> dict[str, Found]:
    """A setting in each mode."""
    train = {"batch": case.batch, "steps": 10**6, "eval_every": 10**6, "checkpoint_every": 10**6}
    run = {
        "backbone": {"name": _backbone(case.model, folder), "weights": "random"},
        "method": case.method,
        "train": {**train, "precision": case.precision},
        **({} if case.task is None else {"task": case.task}),
    }
    path = folder / "case.json"
    path.write_text(json.dumps({"run": run, "tokens": case.tokens, "slots": case.slots}))
    found: dict[str, Found] = {}
    for mode, extra in MODES.items():
        words = ["-m", "benchmarks._calibration_process", str(path), "kept" if mode != "returned" else mode]
        found[mode] = Found(**json.loads(run_cold(words, 1, ROOT, extra).stdout.splitlines()[-1]))
    ours, glibc = found["jemalloc"], found["glibc"]
    say(
        f"  {case.name}: {(ours.tensors + ours.heap) / MIB:.0f} MiB, measured {ours.peak / MIB:.0f} "
        f"({ours.error():+.1f} %), heap {ours.share:.2f} of a pass; glibc {glibc.peak / MIB:.0f} "
        f"({glibc.share:.2f}); tensors {found['returned'].error(0):+.1f} %; "
        f"step {ours.seconds / glibc.seconds:.2f} of glibc's; imports {ours.imports / MIB:.0f}"
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


def calibrated_errors(cases: list[Case], found: list[Found]) -> list[float]:
    """Errors in percent of the settings of each model but its first, which calibrates them."""
    shares: dict[str, float] = {}
    errors = []
    for case, each in zip(cases, found, strict=True):
        if case.model in shares:
            usual, spread = each.heap / each.passing, each.reserve / each.passing
            errors.append(abs(each.error(believed(shares[case.model], usual, spread) * each.passing)))
        else:
            shares[case.model] = each.share
    return errors


def main() -> None:
    cases = [Case("vit-ti16", LORA, 1), Case("vit-ti16", LORA, 2)] if is_quick(__doc__) else CASES
    with tempfile.TemporaryDirectory() as folder:
        found = [measured(case, Path(folder)) for case in cases]
    trials, glibc = [each["jemalloc"] for each in found], [each["glibc"] for each in found]
    percents = {
        "p95-error": p95([abs(each.error()) for each in trials]),
        "p95-tensors": p95([abs(each["returned"].error(0)) for each in found]),
        "p95-calibrated": p95(calibrated_errors(cases, trials)),
    }
    within = sum(each.is_covered for each in (*trials, *glibc))
    seconds = [median([each.seconds for each in side]) for side in (trials, glibc)]
    ratio = median([ours.seconds / theirs.seconds for ours, theirs in zip(trials, glibc, strict=True)])
    finish(
        [
            *(Row(name, each, None, "percent", each, 5.0, machine()) for name, each in percents.items()),
            Row("covered", within, 2 * len(found), "settings", within / (2 * len(found)), 1.0, machine()),
            Row("step-time", seconds[0], seconds[1], "s", ratio, 1.02, machine()),
        ]
    )


if __name__ == "__main__":
    main()
