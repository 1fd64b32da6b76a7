"""The trials that a sweep would have, as far as they are known before it runs."""

from __future__ import annotations

from typing import Any

from replora.errors import ConfigError
from replora.fingerprint import fingerprint
from replora.load import run_from
from sweeps.config import SweepConfig
from sweeps.search import make_searcher

__all__ = ["preview"]


def preview(config: SweepConfig) -> list[dict[str, Any]]:
    """Rows of the search's trials in their order; empty for Optuna, whose proposals hang on results."""
    if config.search.name == "optuna":
        return []
    searcher = make_searcher(config, "maximize")
    rows: dict[str, dict[str, Any]] = {}
    while searcher.left:
        point = searcher.ask()
        for seed in config.seeds:
            try:
                run = run_from(config.run, {**point, "seed": seed})
            except ConfigError:
                break  # a random draw that is no valid run is skipped, as in the sweep itself
            row = {"point": point, "seed": seed, "state": "planned", "objective": None}
            name = fingerprint(run)
            rows.setdefault(name, {"fingerprint": name, **row, "config": run.model_dump(mode="json")})
    return list(rows.values())
