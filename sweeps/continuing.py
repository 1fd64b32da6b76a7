"""Whether a folder's sweep can go on: it must be the same sweep, with the same code and libraries."""

from __future__ import annotations

from pathlib import Path

from replora.config import EngineConfig
from replora.errors import ConfigError, LedgerError
from replora.fingerprint import fingerprint
from replora.load import diff, load
from sweeps.check import sweep_faults
from sweeps.config import BudgetConfig, ResourceConfig, SweepConfig, TrackingConfig
from sweeps.ledger import SweepView
from sweeps.provenance import version_changes, versions

__all__ = [
    "SWEEP_NAME",
    "changes_since",
    "check_same",
    "continued_config",
    "in_recorded_order",
    "refuse_changes",
    "sweep_fingerprint",
]

SWEEP_NAME = "sweep.yaml"
#: May change between two starts without anybody's consent, as may `run.engine`: they move no result.
FREE = ("backend", "resources", "tracking", "max_failures", "budget")
#: May change with consent: what was done stays valid, and more is done.
OPEN = ("search.trials", "confirm.")


def sweep_fingerprint(config: SweepConfig) -> str:
    """Name of a sweep: the hash of everything that decides which trials it has and what they give."""
    return fingerprint(_essence(config))


def check_same(view: SweepView, config: SweepConfig, folder: Path) -> None:
    """Refuses a folder that holds another sweep.

    Raises:
        LedgerError: With the differences.
    """
    there = SweepConfig.model_validate(view.config)
    differences = diff(_essence(there), _essence(config))
    if not differences:
        return
    listed = "".join(f"\n  {line}" for line in differences)
    raise LedgerError(
        f"{folder} belongs to another sweep ({view.name}). Differences, there -> here:{listed}\n"
        f"  Give this sweep another folder (--dir), or go on with the one there: replora resume {folder}"
    )


def continued_config(view: SweepView, folder: Path) -> SweepConfig:
    """The sweep as `sweep.yaml` has it now, or as the ledger has it where that file is gone.

    Raises:
        ConfigError: If `sweep.yaml` is no valid sweep, or was changed in a part that decides what the
            trials so far mean.
    """
    before = SweepConfig.model_validate(view.config)
    path = folder / SWEEP_NAME
    if not path.exists():
        return before
    now = load(SweepConfig, path, (), sweep_faults)
    fixed = [line for line in diff(_essence(before), _essence(now)) if not line.startswith(OPEN)]
    if fixed:
        listed = "".join(f"\n  {line}" for line in fixed)
        raise ConfigError(
            f"{path} was changed since the sweep began, and its trials would not fit together:{listed}\n"
            f"  Undo the change, or start a new sweep from the file: replora sweep {path} --dir NEW_FOLDER"
        )
    return now


def in_recorded_order(config: SweepConfig, view: SweepView) -> SweepConfig:
    """The sweep with the keys of its space as they first were: grids and draws go through them in turn."""
    if sorted(view.order) != sorted(config.space):
        return config
    return config.model_copy(update={"space": {key: config.space[key] for key in view.order}})


def changes_since(view: SweepView, config: SweepConfig) -> list[str]:
    """Readable differences that need consent: in the configuration, the versions and the code."""
    before = SweepConfig.model_validate(view.config)
    return [*diff(_essence(before), _essence(config)), *version_changes(view.versions, versions())]


def refuse_changes(changes: list[str], folder: Path) -> None:
    """Refuses to go on under changed conditions.

    Raises:
        LedgerError: With the changes.
    """
    if changes:
        listed = "".join(f"\n  {line}" for line in changes)
        raise LedgerError(
            f"{folder}: since this sweep began, something changed that can move its results:{listed}\n"
            f"  Restore it; or accept that trials before and after may differ: "
            f"replora resume {folder} --accept-changes"
        )


def _essence(config: SweepConfig) -> SweepConfig:
    neutral = {
        "backend": "ray",
        "resources": ResourceConfig(),
        "tracking": TrackingConfig(),
        "max_failures": 0,
        "budget": BudgetConfig(),
    }
    assert tuple(neutral) == FREE
    run = config.run.model_copy(update={"engine": EngineConfig()})
    return config.model_copy(update={**neutral, "run": run})
