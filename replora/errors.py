"""Every error that this project raises on purpose, under one root.

Each class also derives from the standard exception that it refines, so that callers who know only
the standard library catch it too. All are built from one message string and survive pickling,
because Ray sends them between processes.
"""

from __future__ import annotations

__all__ = [
    "AdapterError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DivergedError",
    "LedgerError",
    "MachineError",
    "PlanError",
    "ReploraError",
    "RunFailedError",
    "TrackingError",
]


class ReploraError(Exception):
    """Root of every expected failure; `exit_status` is what the command line returns for it."""

    exit_status = 1


class ConfigError(ReploraError, ValueError):
    """A configuration, space or override is wrong; the message lists every fault at once."""

    exit_status = 2


class DataError(ReploraError, ValueError):
    """A data set is missing, unreadable or not in the documented layout."""

    exit_status = 2


class PlanError(ReploraError, ValueError):
    """What was asked for does not fit the machine; the message says what would."""

    exit_status = 3


class MachineError(ReploraError, RuntimeError):
    """The machine lacks something that is needed (a package, a device, a port)."""

    exit_status = 3


class CheckpointError(ReploraError, ValueError):
    """A checkpoint is missing, truncated, damaged or of another run."""

    exit_status = 1


class AdapterError(ReploraError, ValueError):
    """An adapter folder does not fit the backbone or is damaged."""

    exit_status = 2


class LedgerError(ReploraError, ValueError):
    """A sweep's ledger is damaged, or the folder belongs to another sweep."""

    exit_status = 2


class TrackingError(ReploraError, ConnectionError):
    """The tracking server cannot be used."""

    exit_status = 3


class DivergedError(ReploraError, ArithmeticError):
    """A run's loss became NaN or infinite."""


class RunFailedError(ReploraError, RuntimeError):
    """A run, or every trial of a sweep, failed; the message names the first cause."""
