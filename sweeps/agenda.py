"""What a sweep asks for next, as lines to be recorded; it changes only by lines that are on disk.

The director records what the agenda gives and hands every recorded line back, of this process or of an
earlier one. So the agenda too is a fold over the ledger.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from replora.config import RunConfig
from replora.errors import ConfigError
from sweeps.budget import Budget
from sweeps.config import SweepConfig
from sweeps.groups import Group
from sweeps.ledger import Entry, Line, SweepView, TrialView
from sweeps.objective import parameters_of
from sweeps.pareto import to_confirm
from sweeps.population import Population
from sweeps.proposals import Proposals
from sweeps.race import run_race
from sweeps.search import make_searcher
from sweeps.space import Point
from sweeps.trials import runs_of, with_seeds
from sweeps.warm import read_earlier

__all__ = ["Agenda"]


class Agenda:
    """The searcher, the population, the confirmation and the budget of one sweep.

    Args:
        config: The sweep.
        view: What its ledger says; the director keeps it up to date.
    """

    def __init__(self, config: SweepConfig, view: SweepView) -> None:
        self._config = config
        self._view = view
        self._proposals = Proposals(make_searcher(config, view.objectives), view.objectives, view.trials)
        self._budget = Budget(config, view)
        pbt = config.search.name == "pbt"
        self._population = Population(config, view.objectives[0]) if pbt else None

    @property
    def left(self) -> bool:
        """Whether the searcher will be asked again."""
        return bool(self._proposals.left) and "search" not in self._view.spent

    def take(self, line: Line, *, recalled: bool) -> None:
        """Takes in a line that is on disk, after the view did."""
        event = line["event"]
        if event in ("asked", "skipped", "warmed"):
            self._proposals.take(line, recalled=recalled)
        if event == "asked":
            self._budget.asked(self._view.trials[line["trial"]])
        elif event in ("finished", "pruned") or (event == "failed" and line["final"]):
            self._budget.ended(self._view.trials[line["trial"]])
            self._proposals.settle(line["trial"])

    def pauses(self, trial: TrialView) -> bool:
        """Whether a trial that has just reported waits for the rest of its population."""
        return self._population is not None and self._population.pauses(trial)

    # --- before the first trial, and after a crash ------------------------------------------------------

    def begin(self) -> list[Entry]:
        """What earlier sweeps tell the searcher, and the seeds of the last proposal that a crash cut off."""
        folders = self._config.search.warm_start[len(self._view.warm) :]
        return [read_earlier(self._config, folder).entry for folder in folders] + self._cut_off()

    def _cut_off(self) -> list[Entry]:
        last = self._proposals.last
        if last is None or not last.trials:
            return []
        asked = {self._view.trials[trial].seed for trial in last.trials}
        runs = runs_of(self._config, last.point, [seed for seed in self._config.seeds if seed not in asked])
        return self._asked(last.point, runs, stage="search", proposal=last.number)

    # --- the search --------------------------------------------------------------------------------------

    def propose(self, *, running: bool) -> list[Entry]:
        """The next proposal as trials, or the reason why it becomes none; or that a budget is spent.

        Args:
            running: Trials that may end early and so give back a part of the budget. Then nothing is asked
                for now where a budget would be exceeded.
        """
        kept = self._kept_back()
        reason = self._budget.spent(time.time(), len(self._config.seeds) + kept)
        if reason:
            reason += f", {kept} are kept for fresh seeds" if kept and "hours" not in reason else ""
            return [] if running else [Entry("spent", None, {"stage": "search", "reason": reason})]
        number, point = self._proposals.ask()
        try:
            runs = runs_of(self._config, point, self._config.seeds)
        except ConfigError as error:
            return [_skipped(number, point, f"invalid: {error}")]
        excess = self._excess(next(iter(runs.values())))
        if excess:
            return [_skipped(number, point, "more than search.max_parameters", excess=excess)]
        known = [trial for trial in runs if trial in self._view.trials]
        if known:
            return [_skipped(number, point, f"the same run as trial {known[0]}", same_as=known)]
        return self._asked(point, runs, stage="search", proposal=number)

    def _kept_back(self) -> int:
        """Trials of the budget that the search leaves to the confirmation."""
        confirm = self._config.confirm
        return confirm.top * (confirm.start or len(confirm.seeds))

    def _excess(self, run: RunConfig) -> float:
        """By what share a run's trainable parameters are above the limit; 0 within it."""
        limit = self._config.search.max_parameters
        parameters = None if limit is None else parameters_of(run)
        return 0.0 if limit is None or parameters is None else max(0.0, parameters / limit - 1)

    # --- when nothing runs ---------------------------------------------------------------------------------

    def follow_up(self) -> list[Entry]:
        """What comes next once no trial runs: a decision of the population, fresh seeds, or nothing."""
        if self.left:
            return []
        if self._population is not None and (entries := self._population.evolve(self._view)):
            return entries
        return self._fresh_seeds()

    def _fresh_seeds(self) -> list[Entry]:
        confirm = self._config.confirm
        if not confirm.top or "confirm" in self._view.spent:
            return []
        groups = to_confirm(self._view, confirm.top)
        entries: list[Entry] = []
        for group, seeds in run_race(groups, confirm, self._view.objectives[0]).wanted:
            for trial, run in _fresh(group, seeds).items():
                if trial in self._view.trials:
                    continue
                if reason := self._budget.spent(time.time(), len(entries) + 1):
                    return [*entries, Entry("spent", None, {"stage": "confirm", "reason": reason})]
                number = len(self._view.trials) + len(entries)
                entries += self._asked(
                    group.point, {trial: run}, stage="confirm", proposal=None, number=number
                )
        return entries

    def _asked(self, point: Point, runs: Mapping[str, RunConfig], **fields: Any) -> list[Entry]:
        """Lines that ask for runs of one point; `number` is that of the first."""
        first = fields.pop("number", len(self._view.trials))
        entries = []
        for number, (trial, run) in enumerate(runs.items(), first):
            config = {"point": point, "config": run.model_dump(mode="json"), "seed": run.seed}
            entries.append(Entry("asked", trial, {**config, **fields, "number": number}))
        return entries


def _fresh(group: Group, seeds: Iterable[int]) -> dict[str, RunConfig]:
    run = RunConfig.model_validate({**group.config, "seed": 0})
    return with_seeds(run, seeds)


def _skipped(
    number: int, point: Point, reason: str, *, same_as: Sequence[str] = (), excess: float = 0.0
) -> Entry:
    fields = {"proposal": number, "point": point, "reason": reason, "same_as": list(same_as)}
    return Entry("skipped", None, fields | ({"excess": excess} if excess else {}))
