"""The verbs of machines, `plan` and `launch` (`doctor`: sweeps.doctoring). Nothing heavy is imported here."""

from __future__ import annotations

from cluster.hardware import list_profiles
from cluster.launch.verb import LAUNCH
from cluster.planning import PLAN
from replora.verbs import Verb

__all__ = ["VERBS", "list_profiles"]

VERBS: tuple[Verb, ...] = (PLAN, LAUNCH)
