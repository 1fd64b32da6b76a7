"""What earlier sweeps know that fits a new one: their finished configurations as points of its space."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from replora.config import RunConfig
from replora.errors import ConfigError, ReploraError
from replora.fingerprint import fingerprint
from replora.load import diff, valid_keys
from replora.reading.faults import Fault
from sweeps.config import Domain, Scalar, SweepConfig
from sweeps.domains import contains
from sweeps.groups import Group, groups_of
from sweeps.ledger import Entry, TrialView, read_ledger
from sweeps.objective import Objective, objectives_of, parameters_of, with_quantities
from sweeps.space import Point, Space, value_at
from sweeps.trials import runs_of

__all__ = ["Earlier", "earlier_words", "read_earlier", "warm_faults", "warm_preview"]


@dataclass
class Earlier:
    """One earlier sweep as the new one sees it.

    Attributes:
        told: Points of the new space, each with the means of the objectives over its seeds.
        left_out: Configurations that do not fit, counted by the reason.
    """

    folder: str
    name: str
    data: str
    told: list[dict[str, Any]] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)

    @property
    def entry(self) -> Entry:
        """The line of the ledger that holds it."""
        return Entry("warmed", None, asdict(self))


def read_earlier(config: SweepConfig, folder: Path) -> Earlier:
    """What a folder's sweep knows of the space of `config`.

    A configuration fits when it lies in the space and everything else of its run is as the new sweep has
    it, the seed and places on this machine excepted; of several seeds, the mean is told.

    Raises:
        LedgerError: If the folder holds no sweep.
    """
    view, space, objectives = read_ledger(folder), Space(config), objectives_of(config)
    found, reasons = Earlier(str(folder), view.name, view.data), Counter[str]()
    for group in groups_of(view):
        trials = [trial for trial in group.search + group.confirm if trial.ended]
        whole = bool(trials) and all(trial.state == "finished" for trial in trials)
        point, reason = _fitting(config, space, group) if whole else (None, "not trained to the end")
        values = _means(trials, objectives) if point is not None else None
        if point is not None and values is not None:
            found.told.append({"point": point, "values": values})
        else:
            reasons[reason or "without all objectives"] += 1
    found.left_out = dict(reasons.most_common())
    return found


def earlier_words(name: str, told: int, left_out: dict[str, int]) -> str:
    """How much of an earlier sweep was used, in one line."""
    rest = "; ".join(f"{count} not: {reason}" for reason, count in left_out.items())
    return f"{told} configurations of {name} told to the searcher" + (f"; {rest}" if rest else "")


def warm_preview(config: SweepConfig) -> Iterator[str]:
    """What each earlier sweep would give, in words."""
    for folder in config.search.warm_start:
        found = read_earlier(config, folder)
        yield earlier_words(found.name, len(found.told), found.left_out)


def warm_faults(config: SweepConfig) -> Iterator[Fault]:
    """Folders that hold no sweep, and searchers that cannot use any."""
    if config.search.warm_start and config.search.name != "optuna":
        name = config.search.name
        text = f"search.warm_start needs search.name: optuna, but got {name}, which learns nothing."
        yield Fault(("search", "warm_start"), text)
    for index, folder in enumerate(config.search.warm_start):
        try:
            read_ledger(folder)
        except (ReploraError, OSError) as error:
            yield Fault(("search", "warm_start", index), f"search.warm_start[{index}]: {error}")


def _fitting(config: SweepConfig, space: Space, group: Group) -> tuple[Point | None, str]:
    """The group's point in the space, or the reason why it has none."""
    point: Point = {}
    for key, domain in space.domains.items():
        if not space.exists(key, point):
            continue
        value = _in_domain(domain, value_at(group.config, key))
        if value is None:
            return None, f"{key} is outside the space"
        point[key] = value
    try:
        here = next(iter(runs_of(config, point, [0]).values()))
        there = RunConfig.model_validate({**group.config, "seed": 0})
    except (ConfigError, ValueError):
        return None, "no valid run here"
    if fingerprint(here) == fingerprint(there):  # which leaves out places on this machine
        return point, ""
    names = valid_keys(here)
    changed = diff(there, here)
    return None, next((line for line in changed if line.partition(":")[0] in names), changed[0])


def _in_domain(domain: Domain, value: Any) -> Scalar | None:
    """The value as the domain writes it; None outside."""
    if domain.values is not None:
        same = [
            known
            for known in domain.values
            if known == value and isinstance(known, bool) == isinstance(value, bool)
        ]
        return same[0] if same else None
    return value if value is not None and contains(domain, value) else None


def _means(trials: Sequence[TrialView], objectives: Sequence[Objective]) -> list[float] | None:
    rows = [_values(trial, objectives) for trial in trials]
    if any(value is None for row in rows for value in row):
        return None
    return [fmean(value for value in column if value is not None) for column in zip(*rows, strict=True)]


def _values(trial: TrialView, objectives: Sequence[Objective]) -> list[float | None]:
    parameters = parameters_of(RunConfig.model_validate(trial.config))
    metrics = with_quantities(trial.metrics, objectives, parameters)
    return [metrics.get(objective.metric) for objective in objectives]
