"""A sweep's ledger as an Optuna study in a journal file, for optuna-dashboard and for Optuna itself."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replora.atomic import draft_of
from replora.errors import ConfigError
from sweeps.best import select
from sweeps.config import SweepConfig
from sweeps.ledger import SweepView, TrialView, read_ledger, read_lines
from sweeps.report.search_words import schedule_text
from sweeps.report.words import point_text, score
from sweeps.search.optuna_search import distribution_of
from sweeps.space import Space

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial, TrialState

__all__ = ["STUDY_NAME", "write_study"]

STUDY_NAME = "study.log"
#: States of our trials in Optuna's words: what waits for its population is still running.
_STATES = {
    "finished": "COMPLETE",
    "pruned": "PRUNED",
    "failed": "FAIL",
    "running": "RUNNING",
    "paused": "RUNNING",
    "asked": "WAITING",
}


def write_study(folder: Path, path: Path) -> int:
    """Number of trials in the study that was written, whole or not at all; the ledger is only read.

    Every trial of the sweep is one of the study, in the same order: its point as parameters, its objectives
    as values, its evaluations as intermediate values, and seed, stage, fingerprint and reason as attributes.
    The study's own attributes say what the best configuration is: Optuna's best trial is that of one seed.

    Args:
        folder: The sweep's.
        path: Of the journal file; an older one is replaced.

    Raises:
        ConfigError: If another file lies there.
        LedgerError: If the folder holds no sweep.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    view, times = _read(folder)
    _check_replaceable(path)
    temporary = draft_of(path)
    try:
        storage = JournalStorage(JournalFileBackend(str(temporary)))
        directions = [objective.direction for objective in view.objectives]
        study = optuna.create_study(storage=storage, study_name=view.name, directions=directions)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # names of metrics are experimental in Optuna
            study.set_metric_names([objective.metric for objective in view.objectives])
        for name, text in _study_attributes(view).items():
            study.set_user_attr(name, text)
        kinds = _distributions(view)
        for trial in view.trials.values():
            study.add_trial(_frozen(view, trial, kinds, times.get(trial.fingerprint, {})))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return len(view.trials)


def _read(folder: Path) -> tuple[SweepView, dict[str, dict[str, float]]]:
    """The view, and for each trial the times of its first start and of its end."""
    view, times = read_ledger(folder), dict[str, dict[str, float]]()
    for line in read_lines(folder):
        if line["trial"] is None or line["event"] == "final":
            continue
        seen = times.setdefault(line["trial"], {"asked": line["time"]})
        if line["event"] == "started":
            seen.setdefault("start", line["time"])
        seen["last"] = line["time"]
    return view, times


def _check_replaceable(path: Path) -> None:
    """Only a journal of an earlier call is written over."""
    if path.exists():
        with path.open("rb") as file:
            if not file.read(12).startswith(b'{"op_code":'):
                raise ConfigError(f"{path} is there and is no Optuna journal. Name another file with --out.")


def _distributions(view: SweepView) -> dict[str, BaseDistribution]:
    space = Space(SweepConfig.model_validate(view.config))
    return {key: distribution_of(domain) for key, domain in space.domains.items()}


def _study_attributes(view: SweepView) -> dict[str, str]:
    found: dict[str, str] = {}
    if best := select(view).best:
        numbers = ", ".join(str(trial.number) for trial in best.trials)
        which = f"trials {numbers}, their mean" if len(best.trials) > 1 else f"trial {numbers}"
        found["best configuration"] = (
            f"{point_text(best.group.point)}: {view.metric} {score(best.mean)} ({which})"
        )
    found |= {
        "schedule": schedule_text(view),
        "state": view.closed or "not over",
        "fingerprint": view.fingerprint,
        "data": view.data,
        "git": view.git,
    }
    return {name: text for name, text in found.items() if text}


def _frozen(
    view: SweepView, trial: TrialView, kinds: Mapping[str, BaseDistribution], times: Mapping[str, float]
) -> FrozenTrial:
    from optuna.trial import FrozenTrial, TrialState

    state = TrialState[_STATES[trial.state]]
    metric = view.objectives[0].metric
    reports = {
        step: metrics[metric]
        for step, metrics in trial.reports
        if math.isfinite(metrics.get(metric, math.nan))
    }
    start = times.get("start", times.get("asked", view.started))
    return FrozenTrial(
        number=trial.number,
        trial_id=trial.number,
        state=state,
        value=None,
        values=_values(view, trial, state),
        params=dict(trial.point),
        distributions={key: kinds[key] for key in trial.point},
        user_attrs=_attributes(view, trial),
        system_attrs={},
        intermediate_values=reports if len(view.objectives) == 1 else {},
        datetime_start=None if state is TrialState.WAITING else datetime.fromtimestamp(start),
        datetime_complete=datetime.fromtimestamp(times["last"]) if state.is_finished() else None,
    )


def _values(view: SweepView, trial: TrialView, state: TrialState) -> list[float] | None:
    """One for each objective of a finished trial; a pruned one keeps the value at its stop, as in Optuna."""
    if trial.state == "finished":
        return [trial.metrics[objective.metric] for objective in view.objectives]
    return [trial.objective] if trial.state == "pruned" and trial.objective is not None else None


def _attributes(view: SweepView, trial: TrialView) -> dict[str, Any]:
    found = {
        "fingerprint": trial.fingerprint,
        "stage": trial.stage,
        "seed": trial.seed,
        "reason": trial.reason,
    }
    if trial.parent:
        found["copy_of"] = f"trial {view.trials[trial.parent].number} at step {trial.parent_step}"
    return {name: value for name, value in found.items() if value != ""}
