"""What a ledger says of a sweep and of its trials, as a fold over its lines."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sweeps.lines import Line
from sweeps.objective import Objective

__all__ = ["Stage", "State", "SweepView", "TrialView"]

Stage = Literal["search", "confirm"]
State = Literal["asked", "running", "paused", "finished", "pruned", "failed"]


@dataclass(slots=True)
class TrialView:
    """What the ledger says of one trial.

    Attributes:
        number: Order in which the trial was asked for, from 0.
        config: The whole RunConfig as plain data; `point` is the part that the sweep varied.
        step: Optimizer steps done, as far as the ledger knows.
        objective: Value at the last step of a finished trial, at the stop of a pruned one, else None.
        metrics: Those of the last report.
        reports: Step and metrics of every evaluation, in order of steps.
        reason: Why it failed or was pruned.
        kind: Of a failure, else the empty string.
        seconds: Time from the last start to the finish.
        adapter: Folder of the adapter, relative to the sweep's folder where it lies inside.
        attempts: Times it was started.
        parent: The trial whose checkpoint after `parent_step` steps this one began with; else empty.
        paused_at: Step at which it last waited for the rest of its population; 0 if it never did.
        final: Metrics of the final run that trained its configuration once more, those of the test split
            among them; empty where there is none. `final_dir` is that run's folder.
    """

    fingerprint: str
    number: int
    stage: Stage
    state: State
    config: dict[str, Any]
    point: dict[str, Any]
    seed: int
    step: int = 0
    objective: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    reports: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    reason: str = ""
    kind: str = ""
    seconds: float | None = None
    adapter: str = ""
    host: str = ""
    attempts: int = 0
    parent: str = ""
    parent_step: int = 0
    paused_at: int = 0
    final: dict[str, float] = field(default_factory=dict)
    final_dir: str = ""

    @property
    def ended(self) -> bool:
        """Nothing is left to do for it."""
        return self.state in ("finished", "pruned", "failed")


@dataclass(slots=True)
class SweepView:
    """What the ledger says of a whole sweep; `apply` adds a line.

    Attributes:
        fingerprint: Of the SweepConfig.
        config: The SweepConfig as plain data.
        trials: By fingerprint, in order of their numbers.
        closed: State at the end (`done` or `failed`), or None while something is left to do.
        size: Lines seen.
        started: Time of the first line, in unix seconds.
        updated: Time of the last line, final runs excepted.
        data: Hash of the data that the trials read; empty until a host has told it.
        data_open: Other data would be accepted, since a person has accepted changes.
        skipped: Proposals that became no trial, being invalid or known already.
        order: Keys of the space as the sweep's file had them, which `config` does not tell.
        objectives: All of them; `metric` and `direction` are those of the first.
        spent: Which budget is used up, in words, by the stage (`search`, `confirm`) that it has ended.
        warm: What each earlier sweep gave the searcher: `name`, `folder`, `told` and `left_out` (counts).
        worked: Seconds of earlier processes; `since` is the start of this one's, in unix seconds.
    """

    fingerprint: str = ""
    name: str = ""
    metric: str = ""
    direction: Literal["maximize", "minimize"] = "maximize"
    versions: dict[str, str] = field(default_factory=dict)
    git: str = ""
    trials: dict[str, TrialView] = field(default_factory=dict)
    closed: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    size: int = 0
    started: float = 0.0
    updated: float = 0.0
    data: str = ""
    data_open: bool = False
    skipped: int = 0
    objectives: tuple[Objective, ...] = ()
    order: tuple[str, ...] = ()
    spent: dict[str, str] = field(default_factory=dict)
    warm: list[dict[str, Any]] = field(default_factory=list)
    worked: float = 0.0
    since: float = 0.0

    def apply(self, line: Line) -> None:
        """Takes in the next line of the ledger."""
        self.size += 1
        event, trial = line["event"], line["trial"]
        last = self.updated
        if event != "final":
            self.updated = line["time"]
        if event in _WHOLE:
            _WHOLE[event](self, line, last)
        elif event == "asked":
            fields = {name: line[name] for name in ("number", "stage", "config", "point", "seed")}
            made = TrialView(trial, state="asked", **fields, parent=line.get("parent") or "")
            made.step = made.parent_step = line.get("parent_step", 0)
            self.trials[trial] = made
        elif trial is not None:
            _APPLY[event](self.trials[trial], line)
            if line.get("data") and (self.data_open or not self.data):
                self.data, self.data_open = line["data"], False


def _began(view: SweepView, line: Line, last: float) -> None:
    view.fingerprint, view.name, view.git = line["sweep"], line["name"], line["git"]
    view.metric, view.direction, view.versions = line["metric"], line["direction"], line["versions"]
    view.config, view.started, view.since = line.get("config", {}), line["time"], line["time"]
    view.order = tuple(line.get("order", ()))
    first = {"metric": view.metric, "direction": view.direction}
    view.objectives = tuple(Objective(**each) for each in line.get("objectives", [first]))


def _resumed(view: SweepView, line: Line, last: float) -> None:
    view.worked, view.since = view.worked + last - view.since, line["time"]
    view.versions, view.closed, view.spent = line["versions"], None, {}
    view.data_open = view.data_open or bool(line["accepted"])
    view.config = line.get("config", view.config)


def _closed(view: SweepView, line: Line, last: float) -> None:
    view.closed = line["state"]


def _skipped(view: SweepView, line: Line, last: float) -> None:
    view.skipped += 1


def _spent(view: SweepView, line: Line, last: float) -> None:
    view.spent[line["stage"]] = line["reason"]


def _warmed(view: SweepView, line: Line, last: float) -> None:
    kept = {name: line[name] for name in ("folder", "name", "left_out")}
    view.warm.append({**kept, "told": len(line["told"])})
    view.data = view.data or line["data"]


_WHOLE = {
    "sweep": _began,
    "resumed": _resumed,
    "closed": _closed,
    "skipped": _skipped,
    "spent": _spent,
    "warmed": _warmed,
}


def _started(trial: TrialView, line: Line) -> None:
    trial.state, trial.host, trial.attempts = "running", line["host"], line["attempt"]


def _reported(trial: TrialView, line: Line) -> None:
    trial.step, trial.metrics = line["step"], _floats(line["metrics"])
    trial.reports.append((trial.step, trial.metrics))


def _checkpointed(trial: TrialView, line: Line) -> None:
    trial.step = max(trial.step, line["step"])


def _finished(trial: TrialView, line: Line) -> None:
    trial.state, trial.step, trial.objective = "finished", line["step"], line["objective"]
    trial.metrics, trial.adapter, trial.seconds = _floats(line["metrics"]), line["adapter"], line["seconds"]
    trial.reason, trial.kind = "", ""


def _pruned(trial: TrialView, line: Line) -> None:
    trial.state, trial.step, trial.objective, trial.reason = (
        "pruned", line["step"], line["objective"], line["reason"],
    )  # fmt: skip
    trial.kind = ""


def _failed(trial: TrialView, line: Line) -> None:
    trial.state = "failed" if line["final"] else "asked"
    trial.reason, trial.kind = line["reason"], line["kind"]


def _paused(trial: TrialView, line: Line) -> None:
    trial.state, trial.paused_at = "paused", line["step"]


def _continued(trial: TrialView, line: Line) -> None:
    trial.state, trial.reason = "asked", ""


def _final(trial: TrialView, line: Line) -> None:
    trial.final, trial.final_dir = _floats(line["metrics"]), line["folder"]


_APPLY = {
    "started": _started,
    "reported": _reported,
    "checkpointed": _checkpointed,
    "finished": _finished,
    "pruned": _pruned,
    "failed": _failed,
    "paused": _paused,
    "continued": _continued,
    "final": _final,
}


def _floats(metrics: Mapping[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else value for name, value in metrics.items()}
