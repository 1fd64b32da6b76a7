"""How far a running sweep is: counts, the best trial so far and the time left, kept up incrementally."""

from __future__ import annotations

from collections import Counter
from itertools import islice

from sweeps.ledger import SweepView, TrialView
from sweeps.pareto import means_of, non_dominated
from sweeps.report.words import better

__all__ = ["Progress", "last_metric", "planned_steps"]


def planned_steps(trial: TrialView) -> int:
    """Optimizer steps that a trial takes if nothing stops it."""
    return int(trial.config["train"]["steps"])


def last_metric(trial: TrialView, metric: str) -> float | None:
    """The newest report of a metric, or None before the first one."""
    return trial.reports[-1][1].get(metric) if trial.reports else None


class Progress:
    """What the live table knows of a sweep.

    An update looks only at trials that are new or not yet over, so it costs the same whether ten
    or ten thousand trials are done.

    Attributes:
        counts: Trials by state.
        best: The finished trial with the best objective; pruned ones were cut short and do not count.
        running: Trials that train now.
        front: With several objectives, the finished trials that no other one beats.

    Args:
        view: The sweep before anything of this process runs; it may grow, but no trial leaves it.
        trials: Trials of the whole sweep, or None where nobody knows.
    """

    def __init__(self, view: SweepView, trials: int | None) -> None:
        self.counts: Counter[str] = Counter()
        self.best: TrialView | None = None
        self.running: list[TrialView] = []
        self.front: list[TrialView] = []
        self._view = view
        self._planned = trials
        self._states: dict[str, tuple[str, int]] = {}
        self._open: dict[str, TrialView] = {}
        self._settled_steps = 0
        self._since: float | None = None
        self._seen, self._reported = 0, 0.0
        # A process that was killed leaves trials "running"; they run when they are started again.
        self._left = {t.fingerprint: t.attempts for t in view.trials.values() if t.state == "running"}
        self.update(0.0)
        self._steps_before = self._steps()

    @property
    def known(self) -> int:
        """Trials that were asked so far."""
        return len(self._states)

    @property
    def planned(self) -> int | None:
        """Trials of the whole sweep, or None where nobody knows."""
        return None if self._planned is None else max(self._planned, self.known)

    @property
    def over(self) -> int:
        """Trials that finished, failed or were pruned."""
        return self.counts["finished"] + self.counts["failed"] + self.counts["pruned"]

    def update(self, now: float) -> list[TrialView]:
        """Trials whose state changed, or that were started again, since the last call.

        Args:
            now: The clock, in seconds.
        """
        trials = self._view.trials
        self._open.update(islice(trials.items(), self.known, None))
        changed = []
        for name in self._open:
            trial = self._open[name] = trials[name]
            state = (trial.state, trial.attempts)
            if state != self._states.get(name):
                self._count(name, state)
                changed.append(trial)
        for trial in changed:
            if trial.state in ("finished", "pruned"):
                self._settle(trial)
        self.running = [trial for trial in self._open.values() if self._runs(trial)]
        if self._since is None and self.running:
            self._since = now
        if self._steps() != self._seen:
            self._seen, self._reported = self._steps(), now
        return changed

    def seconds_left(self, now: float) -> float | None:
        """Time until all planned trials are over, or None before there is anything to judge by.

        Steps that remain, divided by the steps per second from the first trial seen running to the
        last report; from then on it counts down. A trial that is still to come is taken to be as long
        as the mean of those that ended.
        """
        if self._since is None or self.planned is None:
            return None
        done = self._steps() - self._steps_before
        if done <= 0 or self._reported <= self._since:
            return None
        per_step = (self._reported - self._since) / done
        left = self._steps_left() * per_step - (now - self._reported)
        # Overdue: nothing was reported for longer than all the rest should take.
        return left if left > 0 else self._steps_left() * (now - self._since) / done

    def _runs(self, trial: TrialView) -> bool:
        return trial.state == "running" and self._left.get(trial.fingerprint) != trial.attempts

    def _count(self, name: str, state: tuple[str, int]) -> None:
        if name in self._states:
            self.counts[self._states[name][0]] -= 1
        self.counts[state[0]] += 1
        self._states[name] = state

    def _settle(self, trial: TrialView) -> None:
        del self._open[trial.fingerprint]
        self._settled_steps += trial.step
        best = self.best.objective if self.best else None
        if trial.state == "finished" and better(trial.objective, best, self._view.direction):
            self.best = trial
        if trial.state == "finished" and len(self._view.objectives) > 1:
            known = [*self.front, trial]
            values = [means_of([each], self._view.objectives) for each in known]
            self.front = [known[index] for index in non_dominated(values, self._view.objectives)]

    def _steps(self) -> int:
        return self._settled_steps + sum(trial.step for trial in self._open.values())

    def _steps_left(self) -> float:
        waiting = [trial for trial in self._open.values() if trial.state in ("asked", "running", "paused")]
        settled = self.counts["finished"] + self.counts["pruned"]
        unknown = (self.planned or 0) - self.known
        here = sum(max(0, planned_steps(trial) - trial.step) for trial in waiting)
        if not unknown:
            return here
        length = self._settled_steps / settled if settled else here / len(waiting) if waiting else 0.0
        return here + unknown * length
