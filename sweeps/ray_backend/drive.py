"""Ray Tune's controller on slots: the search, the scheduler and the loop that runs a sweep."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ray.exceptions import RayError
from ray.train._internal.storage import StorageContext
from ray.tune import Trainable
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.registry import register_trainable
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import SearchAlgorithm

from replora.errors import MachineError
from sweeps.interruption import interruption, raise_for
from sweeps.ray_backend.contract import Director, HostFactory, HostPlan, Trainer
from sweeps.ray_backend.hosts import RemoteHost
from sweeps.ray_backend.session import Session
from sweeps.ray_backend.slots import STOP, TASK, SlotActorManager

__all__ = ["drive"]

#: Seconds between calls of `on_idle` (choice: a live table reads well at 5 per second).
IDLE_EVERY_S = 0.2
#: Seconds that an interrupted sweep grants its hosts for a last checkpoint (choice: a person waits).
STOP_TIMEOUT_S = 5.0


class PackedTrial(Trainable):
    """Names the trainable in Tune's registry; never instantiated, because a slot trains instead."""


class DirectorSearch(SearchAlgorithm):
    """Asks the director for the next trial, and only when a slot is free for it.

    A trial that is asked ahead of a slot would be proposed without the results that the slot waits for.
    """

    def __init__(self, director: Director, slots: SlotActorManager, storage: StorageContext) -> None:
        self._director = director
        self._slots = slots
        self._storage = storage

    def next_trial(self) -> Trial | None:
        """The next trial, or None when there is none to start now."""
        if self._slots.vacant < 1 or (task := self._director.ask()) is None:
            return None
        self._slots.reserve()
        return Trial(
            PackedTrial.__name__,
            config={TASK: task},
            trial_id=f"{task.fingerprint}-{task.attempt}",
            storage=self._storage,
        )

    def is_finished(self) -> bool:
        """Whether no trial will ever come again."""
        return self._director.done


class DirectorScheduler(FIFOScheduler):
    """Stops the trials that the director wants stopped, so that pruning is the same with and without Ray."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def on_trial_result(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> str:
        """STOP when the director said so."""
        return str(TrialScheduler.STOP if result[STOP] else TrialScheduler.CONTINUE)

    def choose_trial_to_run(self, tune_controller: TuneController) -> Trial | None:
        """None: trials start in the order in which they were asked, which the controller does by itself."""
        return None


class PackedTuneController(TuneController):
    """Tune's controller with slots for actors, and with nothing written to disk: the ledger is the truth."""

    def __init__(self, slots: SlotActorManager, **options: Any) -> None:
        super().__init__(**options)
        self._actor_manager: Any = slots
        self._print_trial_errors = False  # failures are rows of the sweep's table

    def checkpoint(self, force: bool = False, wait: bool = False) -> None:
        """Saves nothing; a restore by Tune trains finished trials again."""

    def _update_trial_queue(self, blocking: bool = False, timeout: int = 600) -> bool:
        """Never waits for the search: waiting here would also keep dead hosts from being replaced."""
        del blocking, timeout
        return bool(super()._update_trial_queue(blocking=False))


def drive(
    director: Director,
    session: Session,
    plan: HostPlan,
    on_idle: Callable[[], None] | None = None,
    factory: HostFactory | None = None,
) -> None:
    """Runs every trial that the director asks for; returns when it is done.

    Args:
        director: Decides and records.
        session: An open connection to Ray.
        plan: Of the hosts.
        on_idle: Called about five times a second.
        factory: Builds the trainer of a host; null means `sweeps.host.Host`.

    Raises:
        MachineError: If the connection to Ray is lost, or a host says that its machine is not fit.
        KeyboardInterrupt: After SIGINT, when the running trials have written checkpoints.
        SystemExit: After SIGTERM, likewise.
    """
    share = session.share(plan.threads)
    hosts = [RemoteHost(index, plan, share, factory or _make_host) for index in range(plan.hosts)]
    slots = SlotActorManager(hosts, director)
    try:
        for host in hosts:
            host.start()
        controller = _controller(director, slots, session)
        with interruption() as signalled:
            _loop(controller, signalled, on_idle or (lambda: None))
            if signalled:
                slots.interrupt(STOP_TIMEOUT_S)
    except RayError as error:
        raise MachineError(f"the connection to Ray was lost: {error}. Resume the sweep.") from error
    finally:
        slots.cleanup()
    raise_for(signalled)


def _controller(director: Director, slots: SlotActorManager, session: Session) -> PackedTuneController:
    register_trainable(PackedTrial.__name__, PackedTrial)
    storage = StorageContext(storage_path=str(session.scratch / "tune"), experiment_dir_name="sweep")
    controller = PackedTuneController(
        slots,
        search_alg=DirectorSearch(director, slots, storage),
        scheduler=DirectorScheduler(),
        storage=storage,
        callbacks=[],
    )
    controller.update_max_pending_trials(slots.vacant)
    return controller


def _loop(controller: PackedTuneController, signalled: list[int], on_idle: Callable[[], None]) -> None:
    last_idle = 0.0
    tune: Any = controller  # Tune's own methods are untyped
    while not (tune.is_finished() or signalled):
        tune.step()
        if time.monotonic() - last_idle >= IDLE_EVERY_S:
            on_idle()
            last_idle = time.monotonic()


def _make_host(slots: int, threads: int, device: str) -> Trainer:
    from sweeps.host import Host

    return Host(slots, threads, device)
