"""The final run of a sweep, recorded beside the trial whose configuration it trained once more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from replora.errors import LedgerError
from replora.reading.compose import find_run
from replora.reading.document import read_document
from sweeps.config import SweepConfig
from sweeps.ledger import LEDGER_NAME, Ledger, SweepView, read_ledger
from sweeps.provenance import git_revision, versions

__all__ = ["record_final"]

#: Longest wait for MLflow, in seconds (choice: a person waits). `replora sync` brings what is missing.
RECORDER_S = 30.0


def record_final(run: str, document: dict[str, Any]) -> str:
    """Words on where the run was recorded; none where it is no final run of a sweep.

    A run that was trained from a sweep's `best.yaml`, unchanged, and tested, becomes a line of that
    sweep's ledger, and so a part of its report and a run below its trial in MLflow. To record it twice
    is to record it once.

    Args:
        run: What the user named: the hand-over of a sweep, or any other run.
        document: The answer of `replora train`.

    Raises:
        LedgerError: If another process drives the sweep.
        TrackingError: If another process records it.
    """
    source = find_run(run)
    data = read_document(source).data
    provenance = data.get("provenance") if isinstance(data, dict) else None
    name, metrics = document["fingerprint"], document["metrics"]
    if not isinstance(provenance, dict) or not any(key.startswith("test_") for key in metrics):
        return ""
    for folder in _folders(source, provenance):
        view = _view_of(folder)
        if view is not None and view.name == provenance.get("name") and name in view.trials:
            return _record(folder, view, document)
    return ""


def _folders(source: Path, provenance: dict[str, Any]) -> Iterator[Path]:
    """Where the sweep may be: beside its `best.yaml`, or where that says."""
    yield source.parent
    for ledger in provenance.get("ledgers") or ():
        if isinstance(ledger, dict) and "path" in ledger:
            yield Path(str(ledger["path"])).parent


def _view_of(folder: Path) -> SweepView | None:
    return read_ledger(folder) if (folder / LEDGER_NAME).is_file() else None


def _record(folder: Path, view: SweepView, document: dict[str, Any]) -> str:
    trial, run_dir = view.trials[document["fingerprint"]], Path(document["run_dir"]).absolute()
    fields = {
        "folder": str(run_dir),
        "step": trial.config["train"]["steps"],
        "metrics": document["metrics"],
        "seconds": document["seconds"],
        "adapter": str(run_dir / "adapter"),
        "config": trial.config,
        "versions": versions(),
        "git": git_revision(),
    }
    try:
        with Ledger.open(folder) as ledger:
            if (trial.final, trial.final_dir) != (document["metrics"], str(run_dir)):
                ledger.append("final", trial.fingerprint, **fields)
    except LedgerError as error:
        raise LedgerError(f"the final run is not recorded beside its sweep: {error}") from error
    return _show(folder, SweepConfig.model_validate(view.config))


def _show(folder: Path, config: SweepConfig) -> str:
    """Brings the new line into the report and into MLflow."""
    from sweeps.mlflow_recorder import MlflowRecorder
    from sweeps.report import write_report

    report = write_report(folder)
    recorder = MlflowRecorder(folder, config.tracking.uri, config.tracking.experiment)
    recorder.start()
    missing = recorder.close(RECORDER_S)
    where = f"MLflow ({recorder.uri}) and " if not missing else ""
    return f"The final run is recorded below its trial: {where}{report}"
