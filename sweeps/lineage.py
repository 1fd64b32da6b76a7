"""Where a copy of population-based training comes from."""

from __future__ import annotations

from collections.abc import Mapping

from sweeps.ledger import TrialView

__all__ = ["lineage", "lineage_text"]


def lineage(trials: Mapping[str, TrialView], trial: TrialView) -> list[TrialView]:
    """The trials whose training this one goes on with, the first member before all others, itself last."""
    found = [trial]
    while found[0].parent:
        found.insert(0, trials[found[0].parent])
    return found


def lineage_text(trials: Mapping[str, TrialView], trial: TrialView) -> str:
    """For example `trial 3, from step 50 trial 8, from step 150 trial 12`; empty for no copy."""
    first, *others = lineage(trials, trial)
    if not others:
        return ""
    return ", ".join(
        [f"trial {first.number}", *(f"from step {t.parent_step} trial {t.number}" for t in others)]
    )
