"""The trials that a sweep would have, as far as they are known before it runs."""

from __future__ import annotations

from typing import Any

from replora.errors import ConfigError
from sweeps.config import SweepConfig
from sweeps.objective import objectives_of
from sweeps.search import make_searcher
from sweeps.trials import runs_of

__all__ = ["preview"]


def preview(config: SweepConfig) -> list[dict[str, Any]]:
    """Rows of the search's trials in their order; empty for Optuna, whose proposals hang on results."""
    if config.search.name == "optuna":
        return []
    searcher = make_searcher(config, objectives_of(config))
    rows: dict[str, dict[str, Any]] = {}
    while searcher.left:
        point = searcher.ask()
        try:
            runs = runs_of(config, point, config.seeds)
        except ConfigError:
            continue  # a random draw that is no valid run is skipped, as in the sweep itself
        for name, run in runs.items():
            row = {"point": point, "seed": run.seed, "state": "planned", "objective": None}
            rows.setdefault(name, {"fingerprint": name, **row, "config": run.model_dump(mode="json")})
    return list(rows.values())
