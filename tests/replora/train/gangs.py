"""What the ranks of a test's gang do: functions of a module, because processes start from them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from replora.config import (
    AdapterMethod,
    BackboneConfig,
    CommonsenseTask,
    DoraMethod,
    DoranMethod,
    FullMethod,
    HoraMethod,
    LinearProbeMethod,
    MethodConfig,
    OptimConfig,
    PrefixMethod,
    ReploraMethod,
    RunConfig,
    TaskConfig,
    TextToTextTask,
    TrainConfig,
    VideoFolderTask,
)
from replora.models.base import Backbone
from replora.tasks.base import Task
from replora.train import ranks
from replora.train.engine import load_base
from replora.train.events import Checkpointed, Reported
from replora.train.pack import Pack
from tests.contracts.packs import neighbour
from tests.replora.made_clips import save_clips
from tests.replora.tiny_bart import FEATURES, save_pairs, save_tiny_bart
from tests.replora.tiny_llama import save_commonsense, save_tiny_llama

Say = Callable[[Any], None]
STAGES = (0, 1, 2, 3)


def with_engine(config: RunConfig, **changes: Any) -> RunConfig:
    return config.model_copy(update={"engine": config.engine.model_copy(update=changes)})


def slots(config: RunConfig) -> dict[str, RunConfig]:
    """Two trials of one pack: different sizes, clipping, decay, learning rates and schedules."""
    method = neighbour(config.method, 0)
    own = {"clip_norm": None, "weight_decay": 0.1, "lr": 5e-3, "schedule": "linear", "warmup_steps": 2}
    optim = config.optim.model_copy(update=own)
    return {"one": config, "other": config.model_copy(update={"method": method, "optim": optim, "seed": 1})}


def save_inputs(root: Path) -> None:
    """Everything that `cases` reads."""
    save_tiny_llama(root / "llama")
    save_commonsense(root / "items")
    save_tiny_bart(root / "bart", visual_features=FEATURES)
    save_pairs(root / "pairs", visual=True)
    save_clips(root / "clips", train=2)


def cases(root: Path) -> dict[str, RunConfig]:
    """Methods on kinds of backbones: each method, each backbone, whatever reads weights in its own way."""
    items = CommonsenseTask(root=root / "items", cutoff=16, val_items=2)
    pairs = TextToTextTask(root=root / "pairs", source_tokens=24, target_tokens=3, visual_tokens=6)
    pairs = pairs.model_copy(update={"val_answers": True, "beams": 1})
    clips = VideoFolderTask(root=root / "clips", image_size=16, frames=2, stride=1)
    swin = BackboneConfig(name="video-swin-nano", weights="random")
    llama, bart = (BackboneConfig(name=f"hf/{root / name}") for name in ("llama", "bart"))
    train = TrainConfig(steps=2, batch=2, micro_batch=1, eval_every=2, checkpoint_every=100)

    def case(method: MethodConfig, backbone: BackboneConfig, task: TaskConfig) -> RunConfig:
        return RunConfig(backbone=backbone, method=method, task=task, train=train, optim=OptimConfig(lr=3e-2))

    return {
        "doran-llama": case(DoranMethod(rank=2, hidden=4), llama, items),
        "hora-llama": case(HoraMethod(rank=2, hidden=4), llama, items),
        "adapter-llama": case(AdapterMethod(bottleneck=5, dropout=0.1, bias=True), llama, items),
        "prefix-llama": case(PrefixMethod(tokens=3, made="mlp", hidden=7), llama, items),
        "replora-bart": case(ReploraMethod(rank=2, hidden=4), bart, pairs),
        "dora-swin": case(DoraMethod(rank=2), swin, clips),
        "linear-probe-swin": case(LinearProbeMethod(), swin, clips),
        "full-swin": case(FullMethod(), swin, clips),
    }


def stage_of(config: RunConfig) -> int:
    """The highest stage that the method is trained at."""
    return 2 if config.method.name == "full" else 3


def trained(config: RunConfig, folder: Path) -> dict[str, Any]:
    """Reports of two trials by name and step, and the paths of their first checkpoints."""
    pack = _pack(config)
    for name, run in slots(config).items():
        pack.admit(name, run, folder / name)
    events = [event for _ in range(config.train.steps) for event in pack.step()]
    assert not pack.trials
    reports = {(e.trial, e.step): e.metrics for e in events if isinstance(e, Reported)}
    return {"reports": reports, "saved": [e.path for e in events if isinstance(e, Checkpointed)]}


def alone(config: RunConfig, folder: Path) -> dict[str, float]:
    """Losses of one trial by name, at its end."""
    pack = _pack(config)
    pack.admit("one", config, folder)
    events = [event for _ in range(config.train.steps) for event in pack.step()]
    [metrics] = [event.metrics for event in events if isinstance(event, Reported)]
    return {name: metrics[name] for name in ("train_loss", "val_loss")}


def in_turn(runs: Sequence[RunConfig], folder: Path) -> list[float]:
    """Validation losses of packs of one that share a base and step in turn, evaluated after each step."""
    base, task = _inputs(runs[0])
    packs = [Pack(run, base, task, 1) for run in runs]
    for number, (pack, run) in enumerate(zip(packs, runs, strict=True)):
        pack.admit("one", run, folder / str(number))
    events = [event for _ in range(runs[0].train.steps) for pack in packs for event in pack.step()]
    return [event.metrics["val_loss"] for event in events if isinstance(event, Reported)]


def turns(root: Path) -> list[RunConfig]:
    """Two methods on one base."""
    found = [cases(root)[name] for name in ("hora-llama", "adapter-llama")]
    train = found[0].train.model_copy(update={"eval_every": 1})
    return [run.model_copy(update={"train": train}) for run in found]


def resaved(config: RunConfig, folder: Path) -> str:
    """The newest checkpoint of `one`, admitted and written again; gives its path."""
    pack = _pack(config)
    pack.admit("one", config, folder / "one")
    return pack.checkpoint("one").path


def _pack(config: RunConfig) -> Pack:
    return Pack(config, *_inputs(config), 2)


def _inputs(config: RunConfig) -> tuple[Backbone, Task]:
    from replora.tasks.load import load_task

    base = load_base(config, "cpu")
    task = load_task(config.task, precision=config.train.precision, device="cpu", processor=base.processor)
    return base, task


def _gather_little_ahead() -> None:
    """As for a large model: the end of a pass finds weights of the next one on their way."""
    from replora.train import engine

    made = engine.base_json

    def small(config: RunConfig, width: int) -> dict[str, Any]:
        wanted = made(config, width)
        wanted["zero_optimization"]["stage3_prefetch_bucket_size"] = 100
        return wanted

    vars(engine)["base_json"] = small


def every_stage(config: RunConfig, folder: Path, test: bool, say: Say) -> None:
    """Trains at every stage, then each of `cases` at its highest; says what came of it.

    And what a rank holds of the base at stage 3.
    """
    del test
    ranks.check_count(2)
    for stage in STAGES:
        run = with_engine(config, zero=stage, offload="base" if stage == 3 else "none")
        say((stage, trained(run, folder / f"zero-{stage}")))
    base = load_base(with_engine(config, zero=3), "cpu")
    held = [vars(parameter)["ds_tensor"].numel() for parameter in base.model.parameters()]
    say(("held", sum(held), sum(parameter.numel() for parameter in base.model.parameters())))
    say(("resaved", resaved(with_engine(config, zero=3), folder / "plain")))
    for name, run in cases(folder).items():
        say((name, alone(with_engine(run, ranks=2, zero=stage_of(run)), folder / name / "sharded")))
    _gather_little_ahead()
    runs = [with_engine(run, ranks=2, zero=3) for run in turns(folder)]
    say(("in turn", in_turn(runs, folder / "in-turn")))


def dying(config: RunConfig, folder: Path, test: bool, say: Say) -> None:
    """Rank 1 is killed while rank 0 waits for it."""
    del config, test
    import torch

    say("ready")
    if ranks.index() == 1:
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)
    ranks.total(torch.zeros(1))


def loading(config: RunConfig, folder: Path, test: bool, say: Say) -> None:
    """Loads the base at stage 3; says by how many bytes this process's own memory grew, now and at most."""
    del folder, test
    from replora.train import engine

    engine._sharer(config)  # imports DeepSpeed and starts it
    import transformers.models.llama.modeling_llama  # noqa: F401 - what it takes does not count

    before, most = own_bytes(), 0
    kept = engine._sharer

    def watching(run: RunConfig) -> Callable[[Any], None]:
        share = kept(run)

        def watched(parameter: Any) -> None:
            nonlocal most
            most = max(most, own_bytes())
            share(parameter)
            most = max(most, own_bytes())

        return watched

    vars(engine)["_sharer"] = watching
    base = load_base(config, "cpu")
    say((own_bytes() - before, most - before, base.name))


def own_bytes() -> int:
    """Memory of this process that it shares with no file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("RssAnon")))
