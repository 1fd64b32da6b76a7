"""Ray Tune's controller on slots, with the search and the scheduler that the director speaks through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray.train._internal.storage import StorageContext
from ray.tune import Trainable
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import SearchAlgorithm

from sweeps.ray_backend.contract import Director
from sweeps.ray_backend.slots import STOP, TASK, SlotActorManager

__all__ = ["PackedTuneController", "make_controller"]


class PackedTrial(Trainable):
    """What Tune takes every trial for; never instantiated, because a slot trains instead."""


class SlotTrial(Trial):
    """A Tune trial of a slot, whose class is known here.

    Tune would look it up four times for each trial, in a store of another process.
    """

    def get_trainable_cls(self) -> type[Trainable]:
        """The same for all."""
        return PackedTrial


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
        if self._slots.vacant < 1 or (task := self._director.ask(empty=self._slots.has_empty_host)) is None:
            return None
        self._slots.reserve()
        return SlotTrial(
            PackedTrial.__name__,
            config={TASK: task},
            trial_id=f"{task.fingerprint}-{task.attempt}",
            storage=self._storage,
            stub=True,  # no look-up of the name
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

    def step(self) -> None:
        """As Tune does, then forgets the trials that have ended.

        Tune keeps them all (13 KB of metadata each) and goes through them in every step.
        """
        super().step()  # type: ignore[no-untyped-call]
        ended = self._stopped_trials | self._failed_trials
        if ended:
            self._trials = [trial for trial in self._trials if trial not in ended]
            for kept in (self._stopped_trials, self._failed_trials, self._trials_to_cache):
                kept.clear()

    def checkpoint(self, force: bool = False, wait: bool = False) -> None:
        """Saves nothing; a restore by Tune trains finished trials again."""

    def _update_trial_queue(self, blocking: bool = False, timeout: int = 600) -> bool:
        """Never waits for the search: waiting here would also keep dead hosts from being replaced."""
        del blocking, timeout
        return bool(super()._update_trial_queue(blocking=False))


def make_controller(director: Director, slots: SlotActorManager, scratch: Path) -> PackedTuneController:
    """A controller that runs the director's trials in these slots; Tune's own files go to `scratch`."""
    storage = StorageContext(storage_path=str(scratch), experiment_dir_name="sweep")
    controller = PackedTuneController(
        slots,
        search_alg=DirectorSearch(director, slots, storage),
        scheduler=DirectorScheduler(),
        storage=storage,
        callbacks=[],
    )
    controller.update_max_pending_trials(slots.vacant)
    return controller
