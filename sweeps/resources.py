"""How a sweep is laid out on a machine: hosts, slots and threads."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass

from cluster.doctor.software import visible_gpus
from sweeps.check import grid_size
from sweeps.config import SweepConfig
from sweeps.population import copies_planned

__all__ = ["Layout", "layout_of", "slots_at_most", "trials_planned", "visible_gpus"]

#: Choice: wider packs gain nothing more on a CPU, and each slot costs memory.
_MAX_SLOTS = 16
#: A search that learns from results must not start most of its trials before the first result: choice.
_ADAPTIVE_SHARE = 4
#: Packing is worth a wider pack only for more than this gain: choice, above the noise of a measurement.
_WORTHWHILE = 1.02


@dataclass(frozen=True)
class Layout:
    """Hosts that hold a frozen base each, the trials that train at once in one, CPU threads of each rank."""

    hosts: int
    slots: int
    threads: int


def trials_planned(config: SweepConfig) -> int:
    """Trials of search and confirmation, if no proposal turns out to be known or invalid."""
    points = config.search.trials or grid_size(config)
    confirmed = min(config.confirm.top, points) * len(config.confirm.seeds)
    copies = copies_planned(config) if config.search.name == "pbt" else 0
    planned = points * len(config.seeds) + copies + confirmed
    return min(planned, config.budget.trials or planned)


def layout_of(config: SweepConfig, rates: Mapping[int, float] | None = None) -> Layout:
    """The configured layout, with a rule where the configuration leaves it open.

    One host for each GPU; without any, one for each core with one thread, because small steps gain
    more from a second pack than from a second thread (one host with all threads where the sweep runs
    in this process). Slots: the narrowest pack that is within 2 % of the fastest measured one, then
    no wider than spreads the search evenly over the hosts in as many rounds.

    Args:
        config: The sweep.
        rates: Measured trial-steps per second by pack width; without them, the widest pack is taken.
    """
    asked = config.resources
    hosts, threads, limit = _hosts(config), _threads(config), slots_at_most(config)
    if asked.slots or config.run.engine.ranks > 1:
        # Choice: a host of several ranks is there because one trial needs them all.
        return Layout(hosts, asked.slots or 1, threads)
    fastest = max(rates.values()) if rates else 0.0
    good = [width for width, rate in (rates or {}).items() if rate * _WORTHWHILE >= fastest]
    width = min([*good, limit]) if good else limit
    share = math.ceil(_search_trials(config) / hosts)
    if share <= width:
        return Layout(hosts, max(1, min(limit, share)), threads)
    return Layout(hosts, math.ceil(share / math.ceil(share / width)), threads)


def slots_at_most(config: SweepConfig) -> int:
    """The widest pack that this sweep could use on a host."""
    hosts, trials = _hosts(config), _search_trials(config)
    if config.search.name == "optuna" or config.pruner.name != "none":
        trials = max(hosts, trials // _ADAPTIVE_SHARE)
    return max(1, min(_MAX_SLOTS, math.ceil(trials / hosts)))


def _search_trials(config: SweepConfig) -> int:
    return (config.search.trials or grid_size(config)) * len(config.seeds)


def _hosts(config: SweepConfig) -> int:
    if config.resources.hosts:
        return config.resources.hosts
    if config.backend == "in-process":
        return 1
    places = max(1, (len(visible_gpus()) or _cores()) // config.run.engine.ranks)
    return min(places, trials_planned(config))


def _threads(config: SweepConfig) -> int:
    return config.resources.threads or max(1, _cores() // (_hosts(config) * config.run.engine.ranks))


def _cores() -> int:
    return len(os.sched_getaffinity(0))
