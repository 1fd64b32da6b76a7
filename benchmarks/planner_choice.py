"""The planner's arrangement (hosts x slots x threads) against the best of those picked by hand.

Where packing wins (the digits ViT, batch 4 and 16) and where it loses (ViT-Ti/16 at 224 px, batch 8).
An arrangement's figure is the optimizer steps per second of all its trials together, its hosts running at
once; arrangements alternate, so that a drifting machine hits all alike. The planner's choice is measured
like the others, not looked up in their table; what it measures to choose, it measures anew.

Rows (ratio = the planner's steps per second / the best arrangement's): at least 0.97
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torchvision.utils import save_image

from benchmarks._common import (
    ROOT,
    Row,
    child_environment,
    cores,
    finish,
    fresh_cache,
    interleaved,
    is_quick,
    machine,
    median,
    say,
)
from replora.config import BackboneConfig, ImageFolderTask, RunConfig, TrainConfig
from sweeps.calibration import calibrated_layout
from sweeps.config import SweepConfig


class Arrangement(NamedTuple):
    """Processes, trials at once in each, CPU threads of each."""

    hosts: int
    slots: int
    threads: int


def by_hand(*, quick: bool) -> list[Arrangement]:
    """What a person would try on this machine."""
    n = cores()
    if quick:
        return [Arrangement(1, 2, 1)]
    one_host = [Arrangement(1, slots, n) for slots in (1, 5, 12)]
    host_per_core = [Arrangement(n, slots, 1) for slots in (1, 2, 5, 8, 12)]
    return [*one_host, *host_per_core]


def planned(config: RunConfig) -> Arrangement:
    """The planner's choice for the 25-point grid over this run."""
    space = {"optim.lr": {"values": [1e-4 * n for n in range(1, 6)]}, "seed": {"values": list(range(5))}}
    layout = calibrated_layout(SweepConfig.model_validate({"name": "plan", "run": config, "space": space}))
    return Arrangement(layout.hosts, layout.slots, layout.threads)


def steps_per_second(config: RunConfig, seconds: float, arrangement: Arrangement) -> float:
    """Optimizer steps per second of all trials, with every host ready before any starts."""
    with tempfile.TemporaryDirectory() as name:
        run = Path(name) / "run.json"
        run.write_text(config.model_dump_json())
        words = ["-m", "benchmarks._arrangement_process", str(run)]
        words += [str(arrangement.slots), str(arrangement.threads), str(seconds)]
        hosts = [start(words, arrangement.threads) for _ in range(arrangement.hosts)]
        for host in hosts:
            if read_line(host) != "ready":
                raise RuntimeError(f"a host of {arrangement} did not start")
        for host in hosts:
            assert host.stdin is not None
            host.stdin.write("go\n")
            host.stdin.flush()
        answers = [json.loads(read_line(host)) for host in hosts]
        for host in hosts:
            host.communicate(timeout=60)
    return float(sum(answer["steps"] / answer["seconds"] for answer in answers))


def start(words: list[str], threads: int) -> subprocess.Popen[str]:
    """A host's process."""
    environment = child_environment(threads)
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, text=True
    )


def read_line(host: subprocess.Popen[str]) -> str:
    """The next line that a host prints; empty when it died."""
    assert host.stdout is not None
    return host.stdout.readline().strip()


def random_images(folder: Path, count: int) -> ImageFolderTask:
    """A folder of random images in two classes, `<root>/<class>/*.png`."""
    torch.manual_seed(0)
    for index in range(count):
        place = folder / f"class{index % 2}"
        place.mkdir(parents=True, exist_ok=True)
        save_image(torch.rand(3, 224, 224), place / f"{index}.png")
    return ImageFolderTask(root=folder)


def cases(folder: Path, *, quick: bool) -> dict[str, RunConfig]:
    digits = {f"digits-b{batch}": RunConfig(train=TrainConfig(batch=batch)) for batch in (4, 16)}
    if quick:
        return {"digits-b4": digits["digits-b4"]}
    vit = BackboneConfig(name="vit-ti16", weights="random")
    large = RunConfig(backbone=vit, task=random_images(folder, 80), train=TrainConfig(batch=8))
    return {**digits, "vit-ti16-b8": large}


def row_of(name: str, config: RunConfig, *, quick: bool) -> Row:
    choice = planned(config)
    tried = list(dict.fromkeys([choice, *by_hand(quick=quick)]))
    seconds, repeats = (0.1, 1) if quick else (3.0, 2)
    sides = {str(tuple(each)): partial(steps_per_second, config, seconds, each) for each in tried}
    figures = {side: median(values) for side, values in interleaved(sides, repeats).items()}
    for side, figure in figures.items():
        say(f"  {name}: (hosts, slots, threads) = {side}: {figure:.1f} steps/s")
    ours, best = figures[str(tuple(choice))], max(figures.values())
    return Row(name, ours, best, "steps per second", ours / best, 0.97, machine())


def main() -> None:
    quick = is_quick(__doc__)
    with tempfile.TemporaryDirectory() as folder, nullcontext() if quick else fresh_cache():
        found = cases(Path(folder), quick=quick)
        finish([row_of(name, config, quick=quick) for name, config in found.items()])


if __name__ == "__main__":
    main()
