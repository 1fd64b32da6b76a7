"""How a sweep is laid out on this machine: hosts, slots and threads."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from sweeps.check import grid_size
from sweeps.config import SweepConfig

__all__ = ["Layout", "layout_of", "trials_planned"]

#: Choice: a pack of 5 has most of packing's gain on a CPU, and each slot costs memory.
MAX_SLOTS = 8


@dataclass(frozen=True)
class Layout:
    """Processes that hold a frozen base each, the trials that train at once in one, and its CPU threads."""

    hosts: int
    slots: int
    threads: int


def trials_planned(config: SweepConfig) -> int:
    """Trials of search and confirmation, if no proposal turns out to be known or invalid."""
    points = config.search.trials or grid_size(config)
    confirmed = min(config.confirm.top, points) * len(config.confirm.seeds)
    return points * len(config.seeds) + confirmed


def layout_of(config: SweepConfig) -> Layout:
    """The configured layout, with a rule where the configuration leaves it open.

    The rule: a host for each core with one thread (one host with all threads where the sweep runs in
    this process), and as many slots as there are trials for, but at most 8 for each host. One
    thread for each host, because small steps gain more from a second pack than from a second thread.
    """
    asked, cores = config.resources, len(os.sched_getaffinity(0))
    trials = trials_planned(config)
    hosts = asked.hosts or (1 if config.backend == "in-process" else min(cores, trials))
    threads = asked.threads or max(1, cores // hosts)
    slots = asked.slots or min(MAX_SLOTS, math.ceil(trials / hosts))
    return Layout(hosts, slots, threads)
