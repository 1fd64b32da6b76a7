"""Where a sweep stops asking: trials, hours, training examples or tokens."""

from __future__ import annotations

from collections.abc import Iterator

from replora.config import RunConfig
from replora.reading.faults import Fault
from sweeps.config import SweepConfig
from sweeps.ledger import SweepView, TrialView

__all__ = ["Budget", "budget_faults"]


class Budget:
    """Counts what trials cost: one that has not ended counts with its full length.

    Args:
        config: The sweep.
        view: Of its ledger; the caller keeps it up to date, and calls `asked` and `ended`.
    """

    def __init__(self, config: SweepConfig, view: SweepView) -> None:
        self._limits = config.budget
        self._view = view
        self._each = _examples(config.run.train.steps, config.run.train.batch)
        self._tokens = _tokens_of(config.run)
        self._examples = 0

    def asked(self, trial: TrialView) -> None:
        """Counts a new trial."""
        self._examples += _cost(trial, trial.config["train"]["steps"])

    def ended(self, trial: TrialView) -> None:
        """Gives back what a trial that has ended early did not use."""
        self._examples -= _cost(trial, trial.config["train"]["steps"]) - _cost(trial, trial.step)

    def spent(self, now: float, more: int) -> str:
        """Why so many more trials are not within the budget; the empty string where they are.

        Args:
            now: In unix seconds.
            more: Trials of the run's own length.
        """
        limits, count = self._limits, len(self._view.trials)
        hours = (self._view.worked + now - self._view.since) / 3600
        examples = self._examples + more * self._each
        if limits.trials and count + more > limits.trials:
            return f"budget.trials: {count} of {limits.trials} trials are asked"
        if limits.hours and hours >= limits.hours:
            return f"budget.hours: {limits.hours:g} have passed"
        if limits.examples and examples > limits.examples:
            return f"budget.examples: {self._examples:,} of {limits.examples:,} are used"
        if limits.tokens and examples * self._tokens > limits.tokens:
            used = self._examples * self._tokens
            return f"budget.tokens: {used:,} of {limits.tokens:,} are used at most"
        return ""


def budget_faults(config: SweepConfig) -> Iterator[Fault]:
    """A budget that no trial fits, that counts what the task has not, or that has nothing to limit."""
    limits, each = config.budget, _examples(config.run.train.steps, config.run.train.batch)
    if limits.tokens and not _tokens_of(config.run):
        text = f"budget.tokens needs a task of language, but got {config.run.task.name}."
        yield Fault(("budget", "tokens"), text, "Use budget.examples.")
    for name, limit, least in (
        ("examples", limits.examples, each),
        ("tokens", limits.tokens, each * _tokens_of(config.run)),
    ):
        if limit and limit < least:
            text = f"budget.{name} must hold one trial at least, which takes {least:,}, but got {limit:,}."
            yield Fault(("budget", name), text)
    kept = config.confirm.top * (config.confirm.start or len(config.confirm.seeds))
    least = kept + len(config.seeds)
    if limits.trials and limits.trials < least:
        text = f"budget.trials must hold a configuration and {kept} confirming trials, {least}, but got "
        yield Fault(("budget", "trials"), f"{text}{limits.trials}.")
    if config.search.name == "pbt" and limits != type(limits)():
        text = "budget cannot be set for population-based training: its trials need one another to the end."
        yield Fault(("budget",), text, "Its cost is known: search.trials times run.train.steps.")


def _cost(trial: TrialView, steps: int) -> int:
    return _examples(steps, trial.config["train"]["batch"])


def _examples(steps: int, batch: int) -> int:
    return steps * batch


def _tokens_of(run: RunConfig) -> int:
    """Tokens of the longest example; 0 where examples are no texts."""
    return int(getattr(run.task, "cutoff", 0))
