"""What a searcher proposed, which trials came of it, and what the searcher was told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Literal

from sweeps.ledger import Line, TrialView
from sweeps.objective import Objective
from sweeps.search import Learner, Outcome, Searcher
from sweeps.space import Point

__all__ = ["Proposal", "Proposals"]


@dataclass
class Proposal:
    """A point of the searcher and its trials, one for each seed; none where the point is no valid run."""

    number: int
    point: Point
    trials: list[str] = field(default_factory=list)
    told: bool = False


class Proposals:
    """Keeps a searcher in step with the ledger; each outcome is told once, in the ledger's order.

    Args:
        searcher: That was asked nothing yet.
        objectives: Of the sweep.
        views: The sweep's trials by fingerprint; the caller keeps them up to date.
    """

    def __init__(
        self, searcher: Searcher, objectives: Sequence[Objective], views: Mapping[str, TrialView]
    ) -> None:
        self._searcher = searcher
        self._objectives = objectives
        self._views = views
        self._all: list[Proposal] = []
        self._of_trial: dict[str, list[Proposal]] = {}

    @property
    def left(self) -> int:
        """Proposals that are still to come."""
        return self._searcher.left

    @property
    def last(self) -> Proposal | None:
        """The newest one that the ledger knows."""
        return self._all[-1] if self._all else None

    def ask(self) -> tuple[int, Point]:
        """Number and point of a new proposal; it counts when its line comes back through `take`."""
        return len(self._all), self._searcher.ask()

    def take(self, line: Line, *, recalled: bool) -> None:
        """Takes in a line `asked`, `skipped` or `warmed`.

        Args:
            line: On disk.
            recalled: It was written by an earlier process, so that the searcher does not know it.
        """
        if line["event"] == "warmed":
            self._learn(line)
            return
        number: int | None = line["proposal"]
        if number is None:
            return  # a trial that no searcher asked for
        if number == len(self._all):
            self._all.append(Proposal(number, line["point"]))
            if recalled:
                self._searcher.recall(line["point"])
        proposal, skipped = self._all[number], line["event"] == "skipped"
        trials = line["same_as"] if skipped else [line["trial"]]
        proposal.trials += trials
        for trial in trials:
            self._of_trial.setdefault(trial, []).append(proposal)
        if skipped:
            self._tell(proposal, line.get("excess", 0.0))

    def settle(self, trial: str) -> None:
        """Tells what the end of a trial decides."""
        for proposal in self._of_trial.get(trial, ()):
            self._tell(proposal)

    def _learn(self, line: Line) -> None:
        assert isinstance(self._searcher, Learner)  # `sweeps.check` refuses the others
        for each in line["told"]:
            self._searcher.learn(each["point"], each["values"])

    def _tell(self, proposal: Proposal, excess: float = 0.0) -> None:
        trials = [self._views[trial] for trial in proposal.trials]
        if not proposal.told and all(trial.ended for trial in trials):
            proposal.told = True
            self._searcher.tell(proposal.number, _outcome(trials, self._objectives, excess))


def _outcome(trials: Sequence[TrialView], objectives: Sequence[Objective], excess: float) -> Outcome:
    """What the searcher is told: the means over seeds, where every seed has its values."""
    states = {trial.state for trial in trials}
    if "failed" in states or not trials or any(trial.objective is None for trial in trials):
        return Outcome("failed", excess=excess)
    metric = objectives[0].metric
    reports = [(step, metrics[metric]) for step, metrics in trials[0].reports] if len(trials) == 1 else []
    state: Literal["pruned", "finished"] = "pruned" if "pruned" in states else "finished"
    values = [fmean(trial.metrics[each.metric] for trial in trials) for each in objectives]
    return Outcome(state, tuple(values), reports)
