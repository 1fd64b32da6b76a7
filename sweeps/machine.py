"""How busy the driver's machine is, for the ledger: MLflow's names, so that its page shows them apart."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import psutil

__all__ = ["MachineSampler", "machine_values"]

#: Seconds between two samples (choice: MLflow's own default).
EVERY_S = 10.0
_MB = 1e6


def machine_values(folder: str) -> dict[str, float]:
    """Processor, memory and disk of this machine at this moment.

    Args:
        folder: On the disk that counts.

    Returns:
        Values by MLflow's own name of each system metric, in percent and in megabytes (10^6 bytes).
        `cpu_utilization_percentage` is that since the last call.
    """
    memory, disk = psutil.virtual_memory(), psutil.disk_usage(folder)
    values = {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": memory.used / _MB,
        "system_memory_usage_percentage": memory.percent,
        "disk_usage_percentage": disk.percent,
        "disk_available_megabytes": disk.free / _MB,
    }
    return {name: round(value, 1) for name, value in values.items()}


class MachineSampler:
    """Records a sample at most every ten seconds.

    Args:
        record: Takes the values; raises what it likes.
        folder: On the disk that counts.
    """

    def __init__(self, record: Callable[[Mapping[str, float]], None], folder: str) -> None:
        self._record = record
        self._folder = folder
        self._last = time.monotonic()
        psutil.cpu_percent()  # the first call has nothing to compare with

    def update(self) -> None:
        """Call it often; early calls return at once."""
        now = time.monotonic()
        if now - self._last >= EVERY_S:
            self._last = now
            self._record(machine_values(self._folder))
