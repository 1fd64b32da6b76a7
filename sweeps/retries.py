"""Whose fault a failure is, and how its trial is tried again: a fold over the ledger's failures.

Three rules. A fault that others may have caused (a host that died with several trials, an error in a
shared pack) does not count against anybody; who meets it twice without having got further in between
is a *suspect*, and runs alone next, where it can only fail by itself. A host that is lost under a trial
alone counts only if the trial got no further since its last failure, because machines are taken away
without any trial's doing. Running out of memory makes packs narrower, then the micro-batch smaller; only
a trial that is alone and cannot be made smaller has failed by it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from replora.config import RunConfig
from replora.train.events import Failed
from replora.train.key import pack_key
from sweeps.ledger import Line, TrialView

__all__ = ["Limits", "Retries", "smaller_micro_batch"]


@dataclass(frozen=True)
class Limits:
    """What memory was found to allow.

    Attributes:
        width: Trials on one host at once; None: as many as it has slots.
        micro_batches: Examples in a forward pass, by the hash of what the runs of a pack share.
    """

    width: int | None
    micro_batches: Mapping[str, int]


class Retries:
    """Judges failures; everything it knows comes from lines of the ledger, through `take`.

    Args:
        max_failures: Times that a trial may fail by itself and be started again.
        views: The sweep's trials by fingerprint; the caller keeps them up to date.
    """

    def __init__(self, max_failures: int, views: Mapping[str, TrialView]) -> None:
        self._max_failures = max_failures
        self._views = views
        self._counted: Counter[str] = Counter()
        self._failed_at: dict[str, int] = {}
        self._suspects: set[str] = set()
        self._width: int | None = None
        self._micro_batches: dict[str, int] = {}

    @property
    def limits(self) -> Limits:
        """What memory allows, as far as the ledger knows."""
        return Limits(self._width, dict(self._micro_batches))

    def is_suspect(self, trial: str) -> bool:
        """Whether it must run alone, so that its next fault is its own."""
        return trial in self._suspects

    def micro_batch(self, config: RunConfig) -> int | None:
        """Examples per forward pass that fit, where fewer than configured do; the batch stays as it is."""
        limit = self._micro_batches.get(_hash(config))
        configured = config.train.micro_batch or config.train.batch
        return limit if limit is not None and limit < configured else None

    def verdict(self, event: Failed) -> dict[str, Any]:
        """Fields of the failure's line: `counted` against the trial, and `final`."""
        trial, reason = event.trial, event.reason
        excused = event.beside > 0 or (event.kind == "lost" and self._got_further(trial))
        if event.kind == "out-of-memory":
            cure = self._cure(event)
            excused = cure is not None
            reason = f"{reason}; {cure}" if cure else reason
        diverged = event.kind == "diverged"
        counted = diverged or not excused
        final = diverged or (counted and self._counted[trial] >= self._max_failures)
        return {
            "step": event.step,
            "kind": event.kind,
            "reason": reason,
            "beside": event.beside,
            "counted": counted,
            "final": final,
        }

    def take(self, line: Line) -> None:
        """Takes in a line `failed` or `limited` that is on disk."""
        if line["event"] == "limited":
            self._width = line["width"]
            self._micro_batches.update(line["micro_batches"])
            return
        trial, beside = line["trial"], line.get("beside", 0)
        self._counted[trial] += bool(line.get("counted", True))
        if line["kind"] == "out-of-memory":
            self._lower(trial, beside)
        elif beside and trial in self._failed_at and not self._got_further(trial):
            self._suspects.add(trial)
        self._failed_at[trial] = self._views[trial].step

    def _got_further(self, trial: str) -> bool:
        return self._views[trial].step > self._failed_at.get(trial, 0)

    def _cure(self, event: Failed) -> str | None:
        """What will be lowered before the next attempt, in words; None: nothing can be."""
        if event.beside:
            return f"hosts train at most {self._narrower(event.beside)} trials at once from now on"
        smaller = smaller_micro_batch(*self._batches(event.trial))
        return f"goes on with micro-batches of {smaller}, accumulated to the same batch" if smaller else None

    def _lower(self, trial: str, beside: int) -> None:
        if beside:
            self._width = self._narrower(beside)
        elif smaller := smaller_micro_batch(*self._batches(trial)):
            self._micro_batches[_hash(self._config(trial))] = smaller

    def _narrower(self, beside: int) -> int:
        half = (beside + 1) // 2
        return half if self._width is None else min(self._width, half)

    def _batches(self, trial: str) -> tuple[int, int]:
        """A rank's share of a batch, and the micro-batch, of a trial's attempt that has failed."""
        config = self._config(trial)
        share = config.train.batch // config.engine.ranks
        return share, self.micro_batch(config) or config.train.micro_batch or share

    def _config(self, trial: str) -> RunConfig:
        return RunConfig.model_validate(self._views[trial].config)


def smaller_micro_batch(batch: int, micro_batch: int) -> int | None:
    """The largest divisor of a batch that is at most half of a micro-batch; None below 1."""
    return next((size for size in range(micro_batch // 2, 0, -1) if batch % size == 0), None)


def _hash(config: RunConfig) -> str:
    return hashlib.sha256(pack_key(config).encode()).hexdigest()[:16]
