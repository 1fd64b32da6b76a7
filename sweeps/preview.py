"""What a sweep would do, as far as it is known before it runs: its trials, packs and memory."""

from __future__ import annotations

from typing import Any

from replora.config import RunConfig
from replora.errors import ConfigError
from replora.train.key import pack_key, shared_fields
from sweeps.config import SweepConfig
from sweeps.objective import objectives_of
from sweeps.placement import Placement
from sweeps.search import make_searcher
from sweeps.space import value_at
from sweeps.trials import runs_of

__all__ = ["memory_document", "memory_text", "packs_of", "preview"]


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


def packs_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Kinds of trials that share packs among themselves alone: how many, and the values that part them."""
    packs: dict[str, dict[str, Any]] = {}
    for row in rows:
        run = RunConfig.model_validate(row["config"])
        shared = shared_fields(run)
        apart = {key: value for key, value in row["point"].items() if value_at(shared, key) is not None}
        packs.setdefault(pack_key(run), {"trials": 0, "point": apart})["trials"] += 1
    return list(packs.values())


def memory_document(placement: Placement) -> dict[str, Any] | None:
    """The member of the sweep that decided, and GiB of a rank of a host; None where they are not known."""
    if placement.member is None:
        return None
    return {
        "point": placement.member.point,
        "needed_gib": round(placement.needed_gib, 2),
        "available_gib": round(placement.available_gib, 2),
    }


def memory_text(placement: Placement) -> str:
    """The same for a person."""
    if placement.member is None:
        return "Memory: not foreseen; the backbone's sizes, or the cluster's machines, are not known here"
    needed, available = placement.needed_gib, placement.available_gib
    return (
        f"Memory: a host needs {needed:.1f} of the {available:.1f} GiB that it may have, with "
        f"{placement.member.words} in every slot"
    )
