"""A host: frozen bases, packs of trials on them, and a bounded number of slots. Knows nothing of Ray."""

from __future__ import annotations

import errno
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from replora.config import RunConfig
from replora.errors import MachineError, PlanError, ReploraError
from replora.train.events import Event, Failed, FailureKind
from replora.train.key import pack_key
from replora.train.process import is_out_of_memory, prepare_process, release_memory

if TYPE_CHECKING:
    from replora.models.base import Backbone
    from replora.tasks.base import Task
    from replora.train.pack import Pack

__all__ = ["Assignment", "Host"]


class Assignment(Protocol):
    """What a host needs to know of a trial; the director's `TrialTask` is one."""

    @property
    def fingerprint(self) -> str:
        """Name of the trial."""
        ...

    @property
    def config(self) -> RunConfig:
        """What to train."""
        ...

    @property
    def folder(self) -> Path:
        """Where its checkpoints and its adapter go."""
        ...

    @property
    def recorded(self) -> int:
        """Step of the last report that is recorded; later ones must come (again) as events."""
        ...

    @property
    def micro_batch(self) -> int | None:
        """Examples per forward pass, where memory allows fewer than its configuration says."""
        ...


@dataclass
class _Group:
    """One pack, the base it stands on, how far its trials are, and the folder of the newest of them."""

    base: Hashable
    pack: Pack
    steps: dict[str, int] = field(default_factory=dict)
    folder: Path = Path()


class Host:
    """Trains up to `slots` trials at once, packed by what they share, on bases that are loaded once.

    Trials with the same `pack_key` train in one pack; packs of different keys step in turn. Nothing that
    goes wrong inside a trial leaves the host: it comes back as a `Failed` event of the trials it touches.
    """

    def __init__(self, slots: int, threads: int, device: str = "cpu") -> None:
        """Starts torch with a fixed number of threads.

        Args:
            slots: Trials that train at once, over all packs.
            threads: CPU threads of this process; the libraries' own defaults (every core) would make
                hosts fight for cores.
            device: Where bases and packs live: `cpu`, or `cuda` (the one GPU that this process sees).

        Raises:
            PlanError: If `slots` or `threads` is below 1.
        """
        if slots < 1 or threads < 1:
            raise PlanError(f"a host needs at least 1 slot and 1 thread, but got {slots} and {threads}")
        prepare_process(threads)
        self._slots = slots
        self._device = device
        self._groups: dict[Hashable, _Group] = {}
        self._bases: dict[Hashable, tuple[Backbone, Task]] = {}
        self._untold: list[Event] = []

    @property
    def free(self) -> int:
        """Slots without a trial."""
        return self._slots - sum(len(group.pack.trials) for group in self._groups.values())

    @property
    def busy(self) -> bool:
        """Whether `step` has anything to do or to tell."""
        return bool(self._untold) or self.free < self._slots

    @property
    def trials(self) -> tuple[str, ...]:
        """Trials that are training."""
        return tuple(trial for group in self._groups.values() for trial in group.pack.trials)

    def admit(self, task: Assignment) -> str | None:
        """Gives a trial a slot; it resumes from the newest good checkpoint in its folder.

        Reports that an earlier process made before that checkpoint and that are not recorded come with the
        next `step`.

        Returns:
            The hash of the data that it reads, or None when it could not start (out of memory, bad data,
            no free slot); the next `step` then says why.
        """
        refused = False
        try:
            if self.free < 1:
                raise PlanError(f"all {self._slots} slots of this host are taken by {', '.join(self.trials)}")
            group = self._group_of(task.config, task.micro_batch)
            group.folder = task.folder
            self._untold += group.pack.admit(task.fingerprint, task.config, task.folder, task.recorded)
        except Exception as error:  # noqa: BLE001 - becomes a Failed event, or ends the sweep
            _end_where_nothing_can_be_written(error, task.folder)
            failed = _failed(task.fingerprint, 0, error)
            beside = len(self.trials) if failed.kind == "out-of-memory" else 0
            failed = replace(failed, beside=beside)
            if not isinstance(error, ReploraError):
                _end_gang([failed], error)  # it may have met this rank alone
            self._untold.append(failed)
            refused = True
        if refused:  # only now does the error no longer hold on to what it was about to load
            self._drop_idle_groups(keep=None)
            return None
        return self._bases[group.base][1].data_hash

    def withdraw(self, trial: str) -> None:
        """Stops a trial early; its slot is free at once. A trial that already ended is ignored."""
        for group in self._groups.values():
            if trial in group.pack.trials:
                group.pack.withdraw(trial)
                group.steps.pop(trial, None)

    def step(self) -> list[Event]:
        """One optimizer step of every running trial, and everything that happened since the last call."""
        events, self._untold = self._untold, []
        for key, group in list(self._groups.items()):
            if group.pack.trials:
                events += self._step_group(key, group)
        return events

    def checkpoint(self) -> list[Event]:
        """Writes the state of every running trial now, for example before the process ends."""
        return [
            group.pack.checkpoint(trial) for group in self._groups.values() for trial in group.pack.trials
        ]

    def _step_group(self, key: Hashable, group: _Group) -> list[Event]:
        try:
            events = group.pack.step()
        except Exception as error:  # noqa: BLE001 - becomes Failed events, or ends the gang or the sweep
            _end_where_nothing_can_be_written(error, group.folder)
            failures = self._broken(group, error)
            _end_gang(failures, error)
            events = list(failures)
            del self._groups[key]
        if key not in self._groups:
            release_memory()
        group.steps.update({event.trial: event.step for event in events})
        return events

    def _broken(self, group: _Group, error: Exception) -> list[Failed]:
        """All trials of a pack fail with it; memory is shared by every pack, other faults by this one."""
        failed = [_failed(trial, group.steps.get(trial, 0), error) for trial in group.pack.trials]
        shared = self.trials if failed[0].kind == "out-of-memory" else group.pack.trials
        return [replace(each, beside=len(shared) - 1) for each in failed]

    def _group_of(self, config: RunConfig, micro_batch: int | None) -> _Group:
        from replora.train.pack import Pack

        key = (pack_key(config), micro_batch)
        if key not in self._groups:
            self._drop_idle_groups(keep=_base_key(config))
            backbone, task = self._base_of(config)
            pack = Pack(config, backbone, task, self._slots, micro_batch)
            self._groups[key] = _Group(_base_key(config), pack)
        return self._groups[key]

    def _base_of(self, config: RunConfig) -> tuple[Backbone, Task]:
        from replora.tasks.load import load_task
        from replora.train import ranks
        from replora.train.engine import load_base

        key = _base_key(config)
        if key not in self._bases:

            def load() -> tuple[Backbone, Task]:
                base = load_base(config, self._device)
                where: dict[str, Any] = {"precision": config.train.precision, "device": self._device}
                return base, load_task(config.task, processor=base.processor, **where)

            self._bases[key] = ranks.agree(load)
        return self._bases[key]

    def _drop_idle_groups(self, keep: Hashable | None) -> None:
        """Frees empty packs, and bases that neither a running trial nor the next one (`keep`) uses."""
        self._groups = {key: group for key, group in self._groups.items() if group.pack.trials}
        used = {group.base for group in self._groups.values()} | {keep}
        if keep is not None:
            self._bases = {key: base for key, base in self._bases.items() if key in used}
        release_memory()


def _base_key(config: RunConfig) -> Hashable:
    return (
        config.backbone.model_dump_json(),
        config.task.model_dump_json(),
        config.train.precision,
        config.engine.model_dump_json(),
    )


def _end_where_nothing_can_be_written(error: Exception, folder: Path) -> None:
    """A full or read-only disk is no trial's fault, and no trial could do better.

    Raises:
        MachineError: Which ends the sweep; everything recorded is safe.
    """
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        where = error.filename or folder
        raise MachineError(
            f"{where} cannot be written ({error.strerror}). What was recorded before is safe.\n"
            f"  Make room for it, then: replora resume {folder.parent.parent}"
        ) from error


def _end_gang(failures: Sequence[Failed], error: Exception) -> None:
    """Lets what failed on this rank end its gang, if it is in one.

    Raises:
        GangError: With the failures.
        Exception: The error itself where it only says that another rank is gone.
    """
    from replora.train import ranks
    from sweeps.gang import GangError

    if ranks.count() > 1:
        if ranks.is_lost_peer(error):
            raise error
        place = f"rank {ranks.index()} of {ranks.count()}: "
        raise GangError([replace(each, reason=place + each.reason) for each in failures]) from error


def _failed(trial: str, step: int, error: Exception) -> Failed:
    kind: FailureKind = "out-of-memory" if is_out_of_memory(error) else "error"
    return Failed(trial, step, kind, f"{type(error).__name__}: {error}")
