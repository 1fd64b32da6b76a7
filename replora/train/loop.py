"""One run from start to end: a pack of one, with a folder that remembers where it was."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import yaml

from replora.atomic import write_atomically
from replora.check import check_fits
from replora.config import EngineConfig, RunConfig
from replora.errors import AdapterError, CheckpointError, DivergedError, MachineError, RunFailedError
from replora.fingerprint import fingerprint
from replora.methods.folder import load_adapter
from replora.tasks.base import SplitName
from replora.tasks.load import load_task
from replora.train import ranks
from replora.train.engine import load_base
from replora.train.events import Event, Failed, Finished
from replora.train.gang import run_ranks
from replora.train.model import SlotModel
from replora.train.pack import Pack
from replora.train.process import prepare_process

__all__ = ["RunResult", "evaluate", "pick_device", "train"]

DESCRIBED, RESULT, LOCK = "config.yaml", "result.json", ".lock"


@dataclass(frozen=True)
class RunResult:
    """What a finished run leaves behind.

    Attributes:
        run_dir: Its folder: `config.yaml`, `result.json`, `adapter/`, `checkpoints/`.
        fingerprint: Of its configuration.
        metrics: Validation metrics after the last step; with the final test, also `test_<metric>`.
        seconds: Of training, over all attempts that this process made.
    """

    run_dir: str
    fingerprint: str
    metrics: dict[str, float]
    seconds: float


def train(
    config: RunConfig,
    folder: Path,
    *,
    test: bool = False,
    on_event: Callable[[Event], None] = lambda event: None,
) -> RunResult:
    """Trains one run to its end, from its newest checkpoint where there is one.

    A run that has already finished is not trained again, and its test split is not read again.

    Args:
        config: The run.
        folder: Its own folder; it may hold an earlier attempt of the same run.
        test: Read the test split, once, after the last step.
        on_event: Called with each report, checkpoint and ending.

    Raises:
        CheckpointError: If the folder belongs to another run.
        DivergedError: If the loss became NaN or infinite.
        MachineError: If the folder's file system has no locks.
        RunFailedError: If another process trains in the folder, or the run ended without a result.
    """
    ranks.join_launched()
    with _held(folder):
        if config.engine.ranks == 1 or ranks.count() > 1:
            return _train_here(config, folder, test, on_event)
        name = fingerprint(config)
        result = _open(folder, config, name)
        if result is None or (test and not _is_tested(result)):
            run_ranks(_train_here, config, folder, test, on_event)
            result = _open(folder, config, name)
        assert result is not None, "rank 0 writes it before it ends"
        return result


def evaluate(run_dir: Path, split: SplitName, engine: EngineConfig | None = None) -> dict[str, float]:
    """Metrics of a run's (or trial's) adapter on a split.

    Args:
        run_dir: Its folder.
        split: Of the task.
        engine: Of this process's gang; it need not be the one of the training. None: one plain process.

    Raises:
        AdapterError: If the folder holds no adapter, or one of another backbone.
    """
    adapter = load_adapter(run_dir / "adapter")
    config, device = adapter.config.model_copy(update={"engine": engine or EngineConfig()}), pick_device()
    backbone = ranks.agree(lambda: load_base(config, device))
    if backbone.fingerprint != adapter.backbone_fingerprint:
        raise AdapterError(
            f"{run_dir}: the adapter was trained on the base {adapter.backbone_fingerprint}, "
            f"but {config.backbone.name} with weights {config.backbone.weights} is {backbone.fingerprint}"
        )
    task = load_task(
        config.task, precision=config.train.precision, device=device, processor=backbone.processor
    )
    model = SlotModel(backbone, task, config)
    parameters = model.one(adapter.tensors, config.method)
    return model.evaluate(parameters, [config.method], split)[0]


def pick_device() -> torch.device:
    """This rank's GPU (the first, where there is one rank), or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def _train_here(config: RunConfig, folder: Path, test: bool, on_event: Callable[[Event], None]) -> RunResult:
    """`train` in this process, as the only rank or one of several; the leader writes the result."""
    name = fingerprint(config)
    result = ranks.from_leader(lambda: _open(folder, config, name))
    if result is None:
        result = _train(config, name, folder, on_event)
        _write_result(folder, result)
    if test and not _is_tested(result):
        scores = evaluate(folder, "test", config.engine)
        tested = {f"test_{key}": value for key, value in scores.items()}
        result = RunResult(result.run_dir, name, {**result.metrics, **tested}, result.seconds)
        _write_result(folder, result)
    return result


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Keeps other processes from training in a run's folder: they would replace each other's files."""
    with ExitStack() as held:
        ranks.from_leader(lambda: _lock(folder, held))
        yield


def _lock(folder: Path, held: ExitStack) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lock = held.enter_context((folder / LOCK).open("a"))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel takes it back when the process dies
    except BlockingIOError as error:
        raise RunFailedError(
            f"{folder}: another process trains in this folder. Wait for it, or name another with --dir."
        ) from error
    except OSError as error:
        raise MachineError(
            f"{folder}: its file system has no locks ({error.strerror}). Name another folder with --dir."
        ) from error


def _is_tested(result: RunResult) -> bool:
    return any(key.startswith("test_") for key in result.metrics)


def _train(config: RunConfig, name: str, folder: Path, on_event: Callable[[Event], None]) -> RunResult:
    prepare_process()
    device, started = pick_device(), time.perf_counter()
    backbone = ranks.agree(lambda: load_base(config, device))
    check_fits(config, backbone.targets)
    task = load_task(
        config.task, precision=config.train.precision, device=device, processor=backbone.processor
    )
    pack = Pack(config, backbone, task, slots=1)
    ranks.from_leader(lambda: _claim(folder, config, name))
    pack.admit(name, config, folder)
    last: Event | None = None
    while pack.trials:
        for last in pack.step():
            on_event(last)
    if isinstance(last, Finished):
        return RunResult(str(folder), name, last.metrics, time.perf_counter() - started)
    if isinstance(last, Failed) and last.kind == "diverged":
        cure = "Lower optim.lr or set optim.clip_norm."
        raise DivergedError(f"{folder}: {last.reason} at step {last.step}. {cure}")
    raise RunFailedError(f"{folder}: {last.reason if isinstance(last, Failed) else 'ended without a result'}")


def _open(folder: Path, config: RunConfig, name: str) -> RunResult | None:
    """Makes sure that the folder can be this run's own; returns its result if it has finished."""
    folder.mkdir(parents=True, exist_ok=True)
    described = folder / DESCRIBED
    if described.exists():
        owner = yaml.safe_load(described.read_text())
        if not isinstance(owner, dict) or owner.get("fingerprint") != name:
            found = owner.get("fingerprint") if isinstance(owner, dict) else "unreadable"
            raise CheckpointError(
                f"{folder}: belongs to the run {found}, not to {name}. Name another folder with --dir."
            )
        if _files_of(owner.get("run")) != _files_of(config.model_dump(mode="json")):
            raise CheckpointError(
                f"{folder}: belongs to the same run on other files. Name another folder with --dir."
            )
    finished = folder / RESULT
    if not finished.exists():
        return None
    try:
        return RunResult(**json.loads(finished.read_text()))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{finished}: damaged: {error}. Remove it to train again.") from error


def _claim(folder: Path, config: RunConfig, name: str) -> None:
    """Makes the folder this run's own, once it has loaded: a start that fails leaves it free."""
    content = {"fingerprint": name, "run": config.model_dump(mode="json")}
    if not (folder / DESCRIBED).exists():
        write_atomically(folder / DESCRIBED, yaml.safe_dump(content, sort_keys=False).encode())


def _files_of(run: object) -> object:
    """A run as data without its engine, which may differ between two attempts (paths may not)."""
    return {key: value for key, value in run.items() if key != "engine"} if isinstance(run, dict) else run


def _write_result(folder: Path, result: RunResult) -> None:
    content = json.dumps(asdict(result), indent=2).encode() + b"\n"
    ranks.from_leader(lambda: write_atomically(folder / RESULT, content))
