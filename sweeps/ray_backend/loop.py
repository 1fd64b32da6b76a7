"""The loop of one host process: steps while busy, takes commands between steps, collects events."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from replora.train.events import Event, Failed, Finished
from sweeps.ray_backend.contract import Task, Trainer

__all__ = ["Admit", "Command", "HostLoop", "News", "Started", "Withdraw"]

#: Longest time that a report waits for others, in seconds. Choice: nobody sees it, and reports of short
#: steps reach the driver together.
BATCH_WAIT_S = 0.25
#: The same where a report may stop its trial. Choice: the reports of one step of a pack travel together.
PROMPT_WAIT_S = 0.02


@dataclass(frozen=True)
class Admit:
    """Give a trial a slot."""

    task: Task


@dataclass(frozen=True)
class Withdraw:
    """Stop a trial early."""

    trial: str


@dataclass(frozen=True)
class Started:
    """A trial got its slot; `data` is the hash of the data that it reads."""

    trial: str
    data: str


Command = Admit | Withdraw
#: What happened, each with the attempt of the trial that it belongs to: a trial that is started again may
#: still have news of its earlier attempt on the way.
News = list[tuple[int, Event | Started]]


class HostLoop:
    """Runs a `Trainer` in a thread of its own.

    `submit` and `poll` may be called from any thread; the trainer is only ever touched by the loop's.

    Args:
        make_trainer: Called in that thread.
        prompt: Whether the driver should hear of reports at once, because they may stop their trials.
    """

    def __init__(self, make_trainer: Callable[[], Trainer], *, prompt: bool = False) -> None:
        self._make_trainer = make_trainer
        self._wait_s = PROMPT_WAIT_S if prompt else BATCH_WAIT_S
        self._changed = threading.Condition()
        self._commands: list[Command] = []
        self._news: News = []
        self._attempts: dict[str, int] = {}
        self._error: BaseException | None = None
        self._stopping = False
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="host-loop", daemon=True)
        self._thread.start()

    def submit(self, commands: Sequence[Command]) -> None:
        """Hands over commands; they take effect, in order, before the next step."""
        with self._changed:
            self._commands += commands
            self._changed.notify_all()

    def poll(self) -> News:
        """Waits for news and gives all there is; nothing once the loop has ended.

        Reports wait a moment for others.

        Raises:
            BaseException: Whatever ended the loop, for example an import that failed in its start.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._news or self._ended)
            self._changed.wait_for(self._urgent, timeout=self._wait_s)
            news, self._news = self._news, []
            if not news and self._error is not None:
                raise self._error
            return news

    def stop(self, timeout_s: float) -> bool:
        """Ends the loop after its current step and a checkpoint of every trial; whether it did so in time."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _urgent(self) -> bool:
        """A slot was taken or became free, or nothing more will come: the driver should know at once."""
        changed = any(isinstance(event, Started | Finished | Failed) for _, event in self._news)
        return changed or self._ended

    def _run(self) -> None:
        try:
            trainer = self._make_trainer()
            while self._take_commands(trainer):
                self._publish(trainer.step())
            self._publish(trainer.checkpoint())
        except BaseException as error:  # noqa: BLE001 - the driver gets it from `poll`
            self._error = error
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _take_commands(self, trainer: Trainer) -> bool:
        """Applies what was submitted; waits while there is nothing to do; False when the loop must end."""
        with self._changed:
            self._changed.wait_for(lambda: self._commands or self._stopping or trainer.busy)
            commands, self._commands = self._commands, []
            if self._stopping:
                return False
        for command in commands:
            match command:
                case Admit(task):
                    self._admit(trainer, task)
                case Withdraw(trial):
                    trainer.withdraw(trial)
        return True

    def _admit(self, trainer: Trainer, task: Task) -> None:
        self._attempts[task.fingerprint] = task.attempt
        data = trainer.admit(task)
        if data is not None:
            self._publish([Started(task.fingerprint, data)])

    def _publish(self, events: Sequence[Event | Started]) -> None:
        if events:
            with self._changed:
                self._news += [(self._attempts[event.trial], event) for event in events]
                self._changed.notify_all()
