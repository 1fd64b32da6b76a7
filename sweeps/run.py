"""Runs a sweep from its configuration to its answer, and goes on with one that was cut off."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from sweeps.backend import Backend
from sweeps.best import Selection, select
from sweeps.calibration import calibrated_layout, remember_limits, remembered_layout, remembered_limits
from sweeps.check import check_sweep
from sweeps.config import SweepConfig
from sweeps.continuing import (
    SWEEP_NAME,
    changes_since,
    check_same,
    continued_config,
    in_recorded_order,
    refuse_changes,
    sweep_fingerprint,
)
from sweeps.director import Director
from sweeps.handover import BEST_NAME, best_document, write_best, write_yaml
from sweeps.ledger import LEDGER_NAME, Ledger, SweepView, read_ledger
from sweeps.machine import MachineSampler
from sweeps.objective import objectives_of
from sweeps.placement import placed
from sweeps.provenance import git_revision, versions
from sweeps.resources import trials_planned
from sweeps.search import check_installed
from sweeps.tracking import resolve_uri
from sweeps.warm import earlier_words

__all__ = ["SweepResult", "resume_sweep", "run_sweep"]

_BACKENDS = {"ray": "sweeps.ray_backend", "in-process": "sweeps.backend"}
#: Longest wait for MLflow to take what it still lacks at the end, and after an interruption, in seconds
#: (choice: a person waits). `replora sync` brings the rest.
RECORDER_S, RECORDER_INTERRUPTED_S = 60.0, 5.0


@dataclass(frozen=True)
class SweepResult:
    """What a sweep came to.

    Attributes:
        best: `best.yaml` as data; None if no configuration was trained to its end.
        undelivered: Metric values that MLflow lacks; `replora sync` brings them.
    """

    folder: Path
    view: SweepView
    selection: Selection
    best: dict[str, Any] | None
    undelivered: int = 0


def run_sweep(config: SweepConfig, folder: Path) -> SweepResult:
    """Runs a sweep to its end; a folder that holds a part of the same sweep is gone on with.

    Args:
        config: The sweep; it is checked before anything is written.
        folder: Of this sweep, new or old.

    Raises:
        ConfigError: With every fault of the sweep.
        LedgerError: If the folder belongs to another sweep, or another process drives it.
        MachineError: If a package is missing.
        PlanError: If a member of the space does not fit this machine's memory.
        TrackingError: If MLflow does not answer when the sweep begins.
        KeyboardInterrupt: After Ctrl-C; everything so far is in the ledger.
    """
    config = _with_absolute_folders(config)
    check_sweep(config)
    check_installed(config.search)
    placed(config, remembered_layout(config))
    if not (folder / LEDGER_NAME).exists():  # one that has begun goes on without its server
        _check_tracking(config, folder)
    with Ledger.open(folder) as ledger:
        if ledger.size:
            view = read_ledger(folder)
            check_same(view, config, folder)
            return _go_on(config, ledger, view, accept_changes=False)
        objectives = objectives_of(config)
        write_yaml(folder / SWEEP_NAME, config.model_dump(mode="json"))
        ledger.append(
            "sweep",
            sweep=sweep_fingerprint(config),
            name=config.name,
            versions=versions(),
            git=git_revision(),
            metric=objectives[0].metric,
            direction=objectives[0].direction,
            objectives=[asdict(objective) for objective in objectives],
            config=config.model_dump(mode="json"),
            order=list(config.space),
        )
        _recall_limits(config, ledger)
        return _drive(config, ledger)


def _recall_limits(config: SweepConfig, ledger: Ledger) -> None:
    if known := remembered_limits(config):
        reason = "memory did not allow more in an earlier sweep on this machine"
        ledger.append("limited", width=known.width, micro_batches=known.micro_batches, reason=reason)


def resume_sweep(folder: Path, *, accept_changes: bool = False) -> SweepResult:
    """Goes on with a sweep; no finished trial is trained again, running ones go on from their checkpoints.

    Args:
        folder: Of the sweep.
        accept_changes: Go on although versions, code or open parts of `sweep.yaml` changed; recorded.

    Raises:
        LedgerError: If the folder holds no sweep, is damaged, or something changed without consent.
        ConfigError: If `sweep.yaml` was changed in a part that decides what the trials so far mean.
    """
    view = read_ledger(folder)
    config = continued_config(view, folder)
    check_installed(config.search)
    with Ledger.open(folder) as ledger:
        return _go_on(config, ledger, read_ledger(folder), accept_changes=accept_changes)


def _go_on(config: SweepConfig, ledger: Ledger, view: SweepView, *, accept_changes: bool) -> SweepResult:
    folder, config = ledger.path.parent, in_recorded_order(config, view)
    changes = changes_since(view, config)
    before = SweepConfig.model_validate(view.config)
    extended = any(getattr(config, part) != getattr(before, part) for part in ("search", "confirm", "budget"))
    if view.closed is not None and not extended:
        return _answer(folder, view)  # nothing is left to do, whatever changed
    if not accept_changes:
        refuse_changes(changes, folder)
    write_yaml(folder / SWEEP_NAME, config.model_dump(mode="json"))
    ledger.append(
        "resumed",
        versions=versions(),
        git=git_revision(),
        accepted=changes or (["data: as the hosts read it from here on"] if accept_changes else []),
        config=config.model_dump(mode="json"),
    )
    return _drive(config, ledger)


def _drive(config: SweepConfig, ledger: Ledger) -> SweepResult:
    """Trains what is left to train, with the recorder and the live table beside it."""
    from sweeps.mlflow_recorder import MlflowRecorder

    folder = ledger.path.parent
    director = Director(config, ledger)
    for earlier in director.view.warm:
        sys.stderr.write(f"{earlier_words(earlier['name'], earlier['told'], earlier['left_out'])}\n")
    recorder = MlflowRecorder(folder, config.tracking.uri, config.tracking.experiment)
    recorder.start()
    patience = RECORDER_INTERRUPTED_S
    try:
        _train(config, director, folder)
        director.close()
        result = _answer(folder, director.view)
        remember_limits(config, director.limits)  # a full cache folder spoils no answer
        patience = RECORDER_S
    except (KeyboardInterrupt, SystemExit):
        ended = sum(trial.ended for trial in director.view.trials.values())
        sys.stderr.write(f"Stopped after {ended} trials. Go on with: replora resume {folder}\n")
        raise
    finally:
        undelivered = recorder.close(patience)
    return replace(result, undelivered=undelivered)


def _train(config: SweepConfig, director: Director, folder: Path) -> None:
    from sweeps.report import LiveTable

    run: Backend = import_module(_BACKENDS[config.backend]).run
    layout = placed(config, calibrated_layout(config)).layout
    sampler = MachineSampler(director.sampled, str(folder))
    with LiveTable(director.view, layout.hosts * layout.slots, trials_planned(config)) as live:

        def on_idle() -> None:
            live.update()
            sampler.update()

        ranks, address = config.run.engine.ranks, config.resources.address
        run(director, folder, layout, ranks=ranks, address=address, on_idle=on_idle)


def _answer(folder: Path, view: SweepView) -> SweepResult:
    """Writes what the sweep hands over."""
    from sweeps.report import write_report

    selection = select(view)
    best = best_document(selection, [folder], [view]) if selection.best else None
    if best is not None:
        write_best(folder / BEST_NAME, best)
    write_report(folder, view, selection)
    return SweepResult(folder, view, selection, best)


def _check_tracking(config: SweepConfig, folder: Path) -> None:
    """Asks a configured server before anything starts; the default file needs no asking, only a name."""
    if config.tracking.uri is None:
        resolve_uri(folder, None)
        return
    from sweeps.mlflow_recorder import MlflowRecorder, check_reachable

    recorder = MlflowRecorder(folder, config.tracking.uri, config.tracking.experiment)
    check_reachable(recorder.uri, experiment=config.tracking.experiment)


def _with_absolute_folders(config: SweepConfig) -> SweepConfig:
    """Folders are found again from any working folder."""
    earlier = tuple(folder.absolute() for folder in config.search.warm_start)
    config = config.model_copy(update={"search": config.search.model_copy(update={"warm_start": earlier})})
    root = getattr(config.run.task, "root", None)
    if not isinstance(root, Path):
        return config
    task = config.run.task.model_copy(update={"root": root.expanduser().absolute()})
    return config.model_copy(update={"run": config.run.model_copy(update={"task": task})})
