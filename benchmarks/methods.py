"""CPU time and saved activations of a training step of each method against PEFT's own, and of inference.

A step is everything: batch, forward, backward, clipping, AdamW and schedule, alone and in one thread. Bases
have random weights: a Llama of 30 million parameters (4 x 128 tokens) and a ViT-S/16 at 224 px (batch 8).
Both sides adapt query and value at rank 8; on timm's fused `qkv` PEFT adapts the whole linear, which is the
cheaper way. The bottleneck adapter's peer is plain torch, because PEFT has none. All sides of a base run in
turn; the time is that of the process, so that other programs on the machine do not count.

Rows (ratio = ours / peer):
    <base>-<method>-time          median of a step's time over its neighbour's: lora at most 1.00, replora
                                  1.01, dora 0.97, others 1.00
    <base>-<method>-activations   bytes that autograd keeps for the backward pass: lora at most 1.00, replora
                                  1.01, dora and doran 0.75, hora and adapter 1.01, prefix 1.00
    <base>-<method>-peak          MiB of peak resident memory that three steps add to the bare base,
                                  in a process of its own: at most 1.10
    <base>-inference-replora      forward pass with RepLoRA over one with LoRA, both ours: at most 1.01
    <base>-inference-hora         the same with HoRA: at most 1.01
    <base>-inference-merged       forward pass of merged weights over the bare base: at most 1.01
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from peft import PrefixTuningConfig, get_peft_model
from torch import nn

from benchmarks._common import Row, finish, interleaved, is_quick, machine, median, run_cold, say
from benchmarks._models import NO_FINGERPRINT
from benchmarks._peers.bottleneck import bottleneck_model
from benchmarks._peers.lora import PeerTrainer, lora_model
from benchmarks._saved import saved_bytes
from benchmarks._steps import STEPS, Case, Side, cases, our_side, peer_side
from replora.config import (
    AdapterMethod,
    DoraMethod,
    DoranMethod,
    HoraMethod,
    LoraMethod,
    MethodConfig,
    PrefixMethod,
    ReploraMethod,
    RunConfig,
)
from replora.methods.bake import merge
from replora.methods.folder import SavedAdapter
from replora.tasks.base import Batch
from replora.train.model import SlotModel

RANK, TOKENS, BOTTLENECK = 8, 10, 64


@dataclass(frozen=True)
class Contest:
    """A method of ours, its peer, and the largest ratios that are aimed at."""

    method: MethodConfig
    peer: str
    time: float = 1.0
    activations: float = 1.0


CONTESTS = {
    "lora": Contest(LoraMethod(rank=RANK), "lora"),
    "replora": Contest(ReploraMethod(rank=RANK), "lora", time=1.01, activations=1.01),
    "dora": Contest(DoraMethod(rank=RANK), "dora", time=0.97, activations=0.75),
    "doran": Contest(DoranMethod(rank=RANK), "dora", activations=0.75),
    "hora": Contest(HoraMethod(rank=RANK), "lora", activations=1.01),
    "adapter": Contest(AdapterMethod(bottleneck=BOTTLENECK), "bottleneck", activations=1.01),
    "prefix": Contest(PrefixMethod(tokens=TOKENS), "prefix"),
}


def peer_model(case: Case, name: str) -> nn.Module:
    """The base under a peer's adapter."""
    match name:
        case "lora" | "dora":
            return lora_model(case.backbone, case.peft_targets, RANK, use_dora=name == "dora")
        case "bottleneck":
            paths = [target.module for target in case.backbone.targets if target.name == "down"]
            return bottleneck_model(case.backbone.model, paths, BOTTLENECK)
        case _:
            config = PrefixTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=TOKENS)
            return get_peft_model(lora_model(case.backbone, (), RANK), config)


def peer(case: Case, name: str) -> Side:
    """A peer's training step."""
    trainer = PeerTrainer(
        peer_model(case, name), case.backbone, case.task.head_width, RunConfig().optim, STEPS
    )
    return peer_side(case, trainer)


def side_of(case: Case, name: str, folder: Path) -> Side:
    """A side by its name: `our <method>`, or a peer's own."""
    ours = name.removeprefix("our ")
    return our_side(case, CONTESTS[ours].method, folder) if ours != name else peer(case, name)


def milliseconds(action: Callable[[], object]) -> float:
    """CPU milliseconds of one call."""
    start = time.process_time()
    action()
    return 1e3 * (time.process_time() - start)


def measured(actions: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """CPU milliseconds of every action in every round."""
    for action in actions.values():
        for _ in range(min(3, repeats)):
            action()
    return interleaved({name: partial(milliseconds, action) for name, action in actions.items()}, repeats)


def row(name: str, ours: list[float], theirs: list[float], unit: str, aim: float) -> Row:
    """Medians, and the median of the ratios of neighbours."""
    ratio = median([a / b for a, b in zip(ours, theirs, strict=True)])
    return Row(name, median(ours), median(theirs), unit, ratio, aim, machine())


def contests_of(case: Case) -> dict[str, Contest]:
    """The methods that have a peer on this base."""
    return {name: c for name, c in CONTESTS.items() if c.peer != "prefix" or case.name.startswith("llama")}


def training_rows(case: Case, repeats: int, folder: Path) -> list[Row]:
    """Time and saved activations of every method that has a peer on this base."""
    contests = contests_of(case)
    names = [*(f"our {name}" for name in contests), *dict.fromkeys(c.peer for c in contests.values())]
    sides = {name: side_of(case, name, folder / name) for name in names}
    times = measured({name: side.step for name, side in sides.items()}, repeats)
    saved = {name: [saved_bytes(side.step, side.frozen) / 2**20] for name, side in sides.items()}
    rows = []
    for name, contest in contests.items():
        ours, start = f"our {name}", f"{case.name}-{name}"
        rows.append(row(f"{start}-time", times[ours], times[contest.peer], "CPU ms per step", contest.time))
        rows.append(row(f"{start}-activations", saved[ours], saved[contest.peer], "MiB", contest.activations))
    return rows


def peak_rows(case: Case, folder: Path, *, quick: bool) -> list[Row]:
    """Peak resident memory of every method that has a peer on this base; quickly, of one method."""
    peaks: dict[str, list[float]] = {}

    def peak(side: str) -> list[float]:
        if side not in peaks:
            arguments = ["-m", "benchmarks._peak_process", case.name, side, *(["--quick"] if quick else [])]
            peaks[side] = [float(run_cold(arguments, 1, folder).stdout.splitlines()[-1])]
        return peaks[side]

    return [
        row(f"{case.name}-{name}-peak", peak(f"our {name}"), peak(contest.peer), "MiB", 1.1)
        for name, contest in contests_of(case).items()
        if not quick or name == "replora"
    ]


def forward_pass(case: Case, method: MethodConfig, batch: Batch) -> Callable[[], object]:
    """Inference with an adapter beside the weights."""
    config = RunConfig(method=method)
    model = SlotModel(case.backbone, case.task, config)
    parameters = model.one(model.initial(config), method)
    with torch.no_grad():
        model.adaptation.prepare(parameters, [method])
    packed = {name: each.unsqueeze(0) for name, each in batch.items()}
    return torch.inference_mode()(lambda: model.forward(packed, parameters))


def inference_rows(case: Case, repeats: int) -> list[Row]:
    """What an adapter costs after training."""
    batch = case.task.split("val").take(torch.arange(case.batch), None)
    config = RunConfig(method=ReploraMethod(rank=RANK))
    model = SlotModel(case.backbone, case.task, config)
    adapter = SavedAdapter(config, NO_FINGERPRINT, case.task.head_width, model.initial(config))
    merged, base = merge(adapter, case.backbone), case.backbone.model
    features = case.backbone.features
    times = measured(
        {
            "replora": forward_pass(case, config.method, batch),
            "hora": forward_pass(case, HoraMethod(rank=RANK), batch),
            "lora": forward_pass(case, LoraMethod(rank=RANK), batch),
            "merged": torch.inference_mode()(lambda: features(merged, batch)),
            "base": torch.inference_mode()(lambda: features(base, batch)),
        },
        repeats,
    )
    start, unit = f"{case.name}-inference", "CPU ms per forward pass"
    return [
        row(f"{start}-replora", times["replora"], times["lora"], unit, 1.01),
        row(f"{start}-hora", times["hora"], times["lora"], unit, 1.01),
        row(f"{start}-merged", times["merged"], times["base"], unit, 1.01),
    ]


def rows_of(case: Case, repeats: int, *, quick: bool) -> list[Row]:
    """All rows of a base."""
    with tempfile.TemporaryDirectory() as folder:
        rows = training_rows(case, repeats, Path(folder))
        rows += peak_rows(case, Path(folder), quick=quick)
    rows += inference_rows(case, repeats)
    for found in rows:
        verdict = "" if found.ratio <= found.aim else "  MISSES ITS AIM"
        say(
            f"  {found.name}: {found.ours:.2f} {found.unit}, peer {found.peer:.2f}, "
            f"ratio {found.ratio:.3f} (at most {found.aim}){verdict}"
        )
    return rows


def main() -> None:
    quick = is_quick(__doc__)
    torch.set_num_threads(1)
    finish([each for case in cases(quick=quick) for each in rows_of(case, 2 if quick else 25, quick=quick)])


if __name__ == "__main__":
    main()
