"""The thread that delivers a growing ledger while a sweep trains. Free of MLflow."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from replora.errors import LedgerError
from sweeps.delivery import Delivery, count_points
from sweeps.tracking import hold, reason

__all__ = ["Follower"]

_log = logging.getLogger(__name__)

# A choice: one batch a trial every two seconds costs the driver little, and a page that shows it is live.
POLL_S = 2.0
CLOSING_POLL_S = 0.2
LONGEST_PAUSE_S = 30.0
# A choice: a person wonders about a longer wait.
TOLD_FROM_S = 10.0


class Follower:
    """Advances a delivery until it is closed, through every failure; training never waits for it.

    Args:
        server: What to call the server in messages.
        begin: Makes the delivery, once the folder is held.
    """

    def __init__(self, server: str, begin: Callable[[], Delivery]) -> None:
        self._server = server
        self._begin = begin
        self._delivery: Delivery | None = None
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._deadline = float("inf")
        self._failures = 0

    def start(self, lock: Path) -> None:
        """Begins to follow; the thread holds `lock` as long as it lives.

        Raises:
            TrackingError: If another process holds the lock.
        """
        with ExitStack() as stack:
            stack.enter_context(hold(lock, wait=False))
            self._delivery = self._begin()
            arguments = (self._delivery, stack.pop_all())
            self._thread = threading.Thread(
                target=self._follow, args=arguments, name="mlflow-recorder", daemon=True
            )
            self._thread.start()

    def close(self, timeout_s: float) -> int:
        """Metric values that were not delivered when the thread ended or the time was over.

        Raises:
            LedgerError: If the ledger was damaged, so that they cannot be counted.
        """
        if self._thread is None or self._delivery is None:
            return 0
        self._deadline = time.monotonic() + timeout_s
        if self._failures and timeout_s > TOLD_FROM_S:
            _log.warning("Waiting up to %.0f s for MLflow (%s); Ctrl-C ends it", timeout_s, self._server)
        self._closing.set()
        self._thread.join(timeout_s)
        self._thread = None
        missing = self._delivery.refused_points
        if not self._delivery.done:
            folder = self._delivery.folder
            missing += count_points(folder, self._delivery.state.offset)
            _log.warning(
                "MLflow (%s) lacks %d metric values and the end of this sweep. "
                "When it is back, deliver them: replora sync %s",
                self._server, missing, folder,
            )  # fmt: skip
        return missing

    def _follow(self, delivery: Delivery, held: ExitStack) -> None:
        with held:
            while not delivery.done and time.monotonic() < self._deadline:
                try:
                    pause = self._advance(delivery)
                    self._failures = 0
                except LedgerError as error:
                    _log.warning("recording into MLflow (%s) ends: %s", self._server, error)
                    return
                except Exception as error:  # noqa: BLE001 - training goes on; the ledger keeps every point
                    pause = self._failed(error)
                self._pause(pause)

    def _advance(self, delivery: Delivery) -> float:
        """Seconds to wait after one step forward."""
        known = len(delivery.refused)
        closing = self._closing.is_set()
        moved = delivery.advance()
        if not moved and closing:
            delivery.finish()
        if refused := delivery.refused[known:]:
            more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
            _log.warning("MLflow (%s) will not have %s%s", self._server, refused[0], more)
        return 0.0 if moved or delivery.done else POLL_S

    def _failed(self, error: Exception) -> float:
        """Seconds to wait before the next try; only the first failure of a row is told."""
        self._failures += 1
        if self._failures == 1:
            _log.warning(
                "MLflow (%s) does not take records: %s. Training goes on, and so do the tries to record",
                self._server, reason(error),
            )  # fmt: skip
        return min(LONGEST_PAUSE_S, 2.0 ** (self._failures - 1))

    def _pause(self, seconds: float) -> None:
        """Waits; not past the call of `close`, nor past its deadline after that."""
        if self._closing.is_set():
            time.sleep(min(seconds, CLOSING_POLL_S, max(0.0, self._deadline - time.monotonic())))
        else:
            self._closing.wait(seconds)
