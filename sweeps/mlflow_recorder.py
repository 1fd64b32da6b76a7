"""Follows a sweep's ledger into MLflow; mlflow_session.py speaks with MLflow itself.

Nothing in training waits for it: a thread of the driver reads what the ledger gained, sends it in
batches, and notes in `<sweep>/mlflow.json` how far it came. An outage is retried until it is over; a
point that is sent twice counts once, because MLflow's key of a point holds its step, time and value.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from replora.errors import LedgerError, TrackingError
from sweeps.delivery import Delivery, count_points
from sweeps.follower import Follower
from sweeps.ledger import read_ledger
from sweeps.mlflow_session import MlflowSession, find_experiment, open_client, set_up
from sweeps.tracking import (
    DEFAULT_EXPERIMENT,
    Delivered,
    check_writable,
    hold,
    knock,
    reason,
    resolve_uri,
    sqlite_file,
)

__all__ = ["MlflowRecorder", "SyncResult", "check_reachable", "sync"]

LOCK_NAME = ".mlflow.lock"


@dataclass(frozen=True)
class SyncResult:
    """What `sync` brought to MLflow.

    Attributes:
        uri: Where to.
        run: MLflow's id of the sweep's run.
        trials: Runs below it, final runs among them.
        points: Metric values of the ledger that are in MLflow now.
        refused: What MLflow did not take, in words; empty when all went well.
    """

    uri: str
    run: str
    trials: int
    points: int
    refused: tuple[str, ...] = ()


class MlflowRecorder:
    """Follows the ledger of one sweep in the background, from `start` until `close`.

    Args:
        folder: The sweep's folder; its ledger may still be missing.
        uri: Tracking URI; null means SQLite in the folder.
        experiment: Name of the experiment, by default "replora".

    Attributes:
        uri: The tracking URI, absolute.

    Raises:
        TrackingError: If the URI is wrong.
    """

    def __init__(self, folder: Path, uri: str | None = None, experiment: str | None = None) -> None:
        self.folder = folder
        self.uri = resolve_uri(folder, uri)
        self._target = Delivered(None if uri is None else self.uri, experiment or DEFAULT_EXPERIMENT)
        self._follower: Follower | None = None

    def start(self) -> None:
        """Begins to follow; returns at once, and imports MLflow in its own thread.

        Raises:
            TrackingError: If another process records this folder, or its `mlflow.json` is damaged.
        """
        self._follower = Follower(self.uri, lambda: _delivery(self.folder, self._target, resume=True))
        self._follower.start(self.folder / LOCK_NAME)

    def close(self, timeout_s: float) -> int:
        """Metric values that MLflow lacks when all is delivered or the time is over, whichever is first.

        Runs of trials that have not ended are marked KILLED; they run again when the sweep is resumed.
        """
        return self._follower.close(timeout_s) if self._follower else 0


def sync(folder: Path, uri: str | None = None) -> SyncResult:
    """Brings the whole ledger of a sweep into MLflow, each point exactly once.

    Args:
        folder: The sweep's folder.
        uri: Where to; null means where the sweep was recorded before, else SQLite in the folder.

    Raises:
        TrackingError: If the server cannot be used, or the sweep is being recorded right now.
        LedgerError: If the folder has no ledger, or a damaged one.
    """
    read_ledger(folder)
    last = Delivered.load(folder) or Delivered(None, DEFAULT_EXPERIMENT)
    target = Delivered(last.uri if uri is None else resolve_uri(folder, uri), last.experiment)
    shown = resolve_uri(folder, target.uri)
    with hold(folder / LOCK_NAME, wait=False):
        check_reachable(shown, experiment=target.experiment)
        delivery = _delivery(folder, target, resume=False)
        try:
            while not delivery.done:
                if not delivery.advance():
                    delivery.finish()
        except LedgerError:
            raise
        except Exception as error:
            raise TrackingError(
                f"MLflow ({shown}) does not take records: {reason(error)}.\n"
                f"  Nothing is lost. When it is back, give the command again: replora sync {folder}"
            ) from error
    points = count_points(folder) - delivery.refused_points
    return SyncResult(shown, target.run, len(target.trials), points, tuple(delivery.refused))


def _delivery(folder: Path, target: Delivered, *, resume: bool) -> Delivery:
    """A delivery from where the last process came to, if it had the same target; else from the start."""
    last = Delivered.load(folder) if resume else None
    if last is not None and (last.uri, last.experiment) == (target.uri, target.experiment):
        target = last
    target.save(folder)
    return Delivery(folder, target, lambda state: MlflowSession(folder, state))


def check_reachable(uri: str, timeout_s: float = 5.0, experiment: str | None = None) -> None:
    """Asks the server one thing, so that a wrong URI ends a sweep before it starts.

    An SQLite file that does not exist yet needs only a folder to write to, and no import of MLflow.

    Args:
        uri: As `MlflowRecorder.uri` has it.
        timeout_s: Longest wait for an answer; the import of MLflow comes on top.
        experiment: Must not be a deleted one; by default "replora".

    Raises:
        TrackingError: If nobody answers in time, or the answer is a refusal.
    """
    file = sqlite_file(uri)
    if file is not None and not file.exists():
        check_writable(file)
        return
    set_up()
    answers: list[Exception | None] = []

    def ask() -> None:
        try:
            knock(uri)
            find_experiment(open_client(uri), experiment or DEFAULT_EXPERIMENT)
            answers.append(None)
        except Exception as error:  # noqa: BLE001 - raised below, in the caller's thread
            answers.append(error)

    thread = threading.Thread(target=ask, name="mlflow-check", daemon=True)
    thread.start()
    thread.join(timeout_s)
    answer = answers[0] if answers else TimeoutError(f"no answer within {timeout_s:g} s")
    if answer is not None:
        raise TrackingError(
            f"MLflow at {uri} cannot be used: {reason(answer)}.\n"
            "  Start it, or correct tracking.uri or the MLFLOW_TRACKING_* variables, "
            "or leave tracking.uri out to record into SQLite in the sweep's folder."
        ) from answer
