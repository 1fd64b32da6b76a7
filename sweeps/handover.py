"""What a sweep hands over: `best.yaml`, and the document that `--json` prints."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from replora.atomic import write_atomically
from sweeps.best import Contender, Selection
from sweeps.ledger import LEDGER_NAME, SweepView, TrialView
from sweeps.lineage import lineage
from sweeps.report.search_words import schedule_text

__all__ = ["BEST_NAME", "best_document", "sweep_document", "trial_row", "write_best", "write_yaml"]

BEST_NAME = "best.yaml"
MAX_RIVALS = 50  # listed in best.yaml (choice); their number is always given
_HEAD = """\
# The best configuration of a sweep. Train it to the end, and test it once: replora train {path}
"""


def best_document(
    selection: Selection, folders: Sequence[Path], views: Sequence[SweepView]
) -> dict[str, Any]:
    """`best.yaml` as data; `selection.best` must not be None.

    Args:
        selection: Of the sweeps in `folders`.
        folders: Of the sweeps, for the provenance.
        views: What their ledgers say, in the same order.
    """
    best = selection.best
    assert best is not None
    trial, rivals = best.trials[0].fingerprint, selection.rivals
    view = next(view for view in views if view.name == best.sweep and trial in view.trials)
    return {
        "run": {**best.group.config, "engine": view.config["run"]["engine"], "seed": _seed(view, best)},
        "objective": {
            "metric": selection.objective.metric,
            "direction": selection.objective.direction,
            **_measured(best),
            "split": "validation",
            "note": selection.note,
        },
        **_front(selection),
        "not_distinguishable": [_rival(item) for item in rivals[:MAX_RIVALS]],
        "not_distinguishable_count": len(rivals),
        "compared": len(selection.contenders),
        "provenance": {
            "sweep": view.fingerprint,
            "name": view.name,
            "ledgers": [_ledger(folder, each.size) for folder, each in zip(folders, views, strict=True)],
            "trials": [trial.fingerprint for trial in best.trials],
            **_lineage(view, best),
            "versions": dict(view.versions),
            "git": view.git,
            "data": view.data,
            "date": datetime.fromtimestamp(view.updated, UTC).isoformat(timespec="seconds"),
        },
    }


def sweep_document(folder: Path, view: SweepView, best: dict[str, Any] | None) -> dict[str, Any]:
    """What `replora sweep --json` and `resume --json` print."""
    return {
        "sweep_dir": str(folder),
        "name": view.name,
        "fingerprint": view.fingerprint,
        "state": view.closed or "interrupted",
        "metric": view.metric,
        "direction": view.direction,
        "trials": [trial_row(trial) for trial in view.trials.values()],
        "schedule": schedule_text(view),
        "skipped": view.skipped,
        "spent": view.spent,
        "warm_start": view.warm,
        "best": best,
    }


def trial_row(trial: TrialView) -> dict[str, Any]:
    """One trial without its reports."""
    return {name: _finite(value) for name, value in asdict(trial).items() if name != "reports"}


def write_yaml(path: Path, document: dict[str, Any], head: str = "") -> None:
    """Writes YAML whole or not at all."""
    plain = json.loads(json.dumps(_finite(document)))
    text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100)
    write_atomically(path, (head + text).encode())


def write_best(path: Path, document: dict[str, Any]) -> None:
    """Writes `best.yaml`, which `replora train` accepts."""
    write_yaml(path, document, _HEAD.format(path=path.name))


def _seed(view: SweepView, best: Contender) -> int:
    """The seed of the final run: the search's first, so that the run is one that the sweep has seen."""
    seeds: list[int] = view.config.get("seeds") or [best.trials[0].seed]
    return seeds[0]


def _front(selection: Selection) -> dict[str, Any]:
    """The Pareto front, where there are several objectives."""
    if not selection.front or selection.best is None:
        return {}
    names = [objective.metric for objective in selection.objectives]
    return {
        "objectives": [asdict(objective) for objective in selection.objectives],
        "chosen": selection.best.words,
        "front": [
            {
                "sweep": item.sweep,
                "point": dict(item.group.point),
                "values": dict(zip(names, item.objectives, strict=True)),
                "chosen": item is selection.best,
            }
            for item in selection.front
        ],
    }


def _lineage(view: SweepView, best: Contender) -> dict[str, Any]:
    """Whose checkpoints the best one of a population went on from; `run.optim.phases` replays its rates."""
    line = lineage(view.trials, (best.group.search or best.trials)[0])
    if len(line) == 1:
        return {}
    return {"lineage": [{"trial": trial.fingerprint, "from_step": trial.parent_step} for trial in line]}


def _measured(item: Contender) -> dict[str, Any]:
    return {
        "value": item.mean,
        "interval": None if item.interval is None else asdict(item.interval),
        "values_by_seed": {str(seed): value for seed, value in sorted(item.values.items())},
    }


def _rival(item: Contender) -> dict[str, Any]:
    gap = None if item.gap is None else list(item.gap)
    return {
        "sweep": item.sweep,
        "point": dict(item.group.point),
        **_measured(item),
        "best_is_ahead_by": gap,
        "words": item.words,
    }


def _ledger(folder: Path, lines: int) -> dict[str, Any]:
    """Path and hash of the lines that the answer rests on: `head -n LINES ledger.jsonl | sha256sum`."""
    digest = hashlib.sha256()
    with (folder / LEDGER_NAME).open("rb") as file:
        for raw in islice(file, lines):
            digest.update(raw)
    return {"path": str(folder / LEDGER_NAME), "lines": lines, "sha256": digest.hexdigest()}


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
