"""Scripted trials through a real Ray and Tune's real controller."""

from __future__ import annotations

import os
import signal
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from replora.errors import MachineError
from replora.train.events import Checkpointed, Event, Failed, Finished, Reported
from sweeps.ray_backend.contract import HostPlan
from tests.sweeps.scripted import ScriptedDirector, ScriptedTrainer
from tests.waiting import PATIENCE_S, running, wait_for

SLOTS = 3
TRIALS = [f"t-{index}" for index in range(14)]


@pytest.fixture(scope="module")
def session() -> Iterator[Any]:
    from sweeps.ray_backend.session import Session

    with Session(hosts=2) as started:
        yield started


Sweep = Callable[..., ScriptedDirector]


@pytest.fixture
def sweep(session: Any, tmp_path: Path) -> Sweep:
    """Runs named trials to the end on two hosts of three slots; gives the director."""
    return sweep_in(session, tmp_path)


def sweep_in(session: Any, own: Path) -> Sweep:
    from sweeps.ray_backend.drive import drive

    def run(*names: str, hosts: int = 2, slots: int = SLOTS, **options: Any) -> ScriptedDirector:
        director = ScriptedDirector(own, names)
        on_event = options.pop("on_event", None)
        if on_event:
            director.on_event = lambda event: on_event(director, event)
        plan = HostPlan(hosts, slots, options.pop("threads", 1), options.pop("folder", own), prompt=True)
        drive(director, session, plan, options.pop("on_idle", None), ScriptedTrainer)
        return director

    return run


@pytest.fixture(scope="module")
def calm(session: Any, tmp_path_factory: pytest.TempPathFactory) -> ScriptedDirector:
    """The director after a sweep of two hosts of two threads, in which some trials were pruned."""
    return sweep_in(session, tmp_path_factory.mktemp("calm"))(*TRIALS, *names("prune", 4), threads=2)


def names(prefix: str, count: int) -> list[str]:
    return [f"{prefix}-{index}" for index in range(count)]


def reported(director: ScriptedDirector, trial: str) -> list[int]:
    return [event.step for event in director.of(trial) if isinstance(event, Reported)]


def wait_for_the_end(director: ScriptedDirector) -> None:
    """Until every process that reported has ended."""
    reports = [event for event in director.events if isinstance(event, Reported)]
    processes = {int(event.metrics["pid"]) for event in reports}
    assert processes
    hosts = [process for process in psutil.process_iter() if process.pid in processes]
    wait_for(lambda: not running(hosts), "the end of every host")


def test_every_trial_finishes_once_and_reports_every_step(calm: ScriptedDirector) -> None:
    assert calm.done
    assert [reported(calm, trial) for trial in TRIALS] == [[5, 10, 15, 20]] * len(TRIALS)
    finished = [event.trial for event in calm.events if isinstance(event, Finished)]
    assert sorted(finished) == sorted(TRIALS)


def test_a_pruned_trial_stops_at_its_report(calm: ScriptedDirector) -> None:
    assert [reported(calm, trial) for trial in names("prune", 4)] == [[5]] * 4


def test_no_trial_is_asked_before_a_slot_is_free(calm: ScriptedDirector) -> None:
    assert calm.most_active == 2 * SLOTS


def test_both_hosts_get_trials(calm: ScriptedDirector) -> None:
    used = [calm.hosts[trial] for trial in TRIALS[: 2 * SLOTS]]
    assert used.count(["host-0"]) == used.count(["host-1"]) == SLOTS


def test_a_host_has_the_threads_that_were_asked_for_and_jemalloc(calm: ScriptedDirector) -> None:
    reports = [event for event in calm.events if isinstance(event, Reported)]
    assert {event.metrics["omp"] for event in reports} == {2.0}
    assert {event.metrics["jemalloc"] for event in reports} == {float(sys.platform == "linux")}


def test_no_host_outlives_its_sweep(calm: ScriptedDirector) -> None:
    wait_for_the_end(calm)


def test_a_slot_refills_while_its_neighbour_runs_on_and_the_display_is_called(sweep: Sweep) -> None:
    calls: list[int] = []
    director = sweep("slow", *names("t", 6), hosts=1, slots=2, on_idle=lambda: calls.append(1))
    order = [event.trial for event in director.events if isinstance(event, Finished)]
    assert order == [*names("t", 6), "slow"]
    assert len(calls) > 3


def test_tune_sees_the_newest_report_of_each_batch(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    from sweeps.ray_backend.controller import DirectorScheduler

    seen: dict[str, list[int]] = defaultdict(list)

    def spied(original: Callable[..., Any]) -> Callable[..., Any]:
        def spy(self: Any, controller: Any, trial: Any, result: dict[str, Any]) -> Any:
            seen[trial.trial_id].append(result["training_iteration"])
            return original(self, controller, trial, result)

        return spy

    for name in ("on_trial_result", "on_trial_complete"):
        monkeypatch.setattr(DirectorScheduler, name, spied(getattr(DirectorScheduler, name)))
    director = sweep(*names("t", 3), hosts=1)
    for trial in names("t", 3):
        batches = [[event.step for event in batch if event.trial == trial] for batch in director.batches]
        assert seen[f"{trial}-1"] == [max(steps) for steps in batches if steps]


def test_tune_does_not_pile_up_trials_that_ended(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    from sweeps.ray_backend.controller import PackedTuneController

    kept: list[int] = []
    original = PackedTuneController.step

    def spy(self: Any) -> None:
        original(self)
        kept.append(len(self.get_trials()))

    monkeypatch.setattr(PackedTuneController, "step", spy)
    director = sweep(*names("t", 12), *names("prune", 4), hosts=1, slots=2)
    assert director.ended(Finished) == set(names("t", 12))
    assert max(kept) <= 3, "two slots and one that is on its way into the next"
    assert kept[-1] == 0


def test_a_killed_host_loses_its_trials_only_for_a_while(sweep: Sweep) -> None:
    director = sweep("kill", "slow-a", "slow-b", "slow-c", slots=2)
    lost = {event.trial for event in director.events if isinstance(event, Failed)}
    assert "kill" in lost
    assert {event.kind for event in director.events if isinstance(event, Failed)} == {"lost"}
    assert director.ended(Finished) == {"kill", "slow-a", "slow-b", "slow-c"}
    neighbours = {"slow-a", "slow-b", "slow-c"} - lost
    assert len(neighbours) == 2, "the other host has two slots"
    assert {director.attempts[trial] for trial in neighbours} == {1}


def test_a_lost_trial_does_not_wait_for_a_host_that_cannot_start(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sweeps.ray_backend.hosts import RemoteHost

    original = RemoteHost.start

    def start(self: Any) -> None:
        if self._starts:  # the machine that it stood on is gone
            self._actor_class = self._actor_class.options(num_cpus=1000)
        original(self)

    monkeypatch.setattr(RemoteHost, "start", start)
    director = sweep("kill", *names("t", 3), slots=1)
    assert director.ended(Finished) == {"kill", *names("t", 3)}
    assert director.attempts["kill"] == 2
    assert len(set(director.hosts["kill"])) == 2


def test_a_lost_trial_goes_on_from_its_checkpoint_and_its_reason_is_one_line(
    sweep: Sweep, capfd: pytest.CaptureFixture[str]
) -> None:
    director = sweep("kill", hosts=1, slots=1)
    assert director.attempts == {"kill": 2}
    [loss] = [index for index, event in enumerate(director.of("kill")) if isinstance(event, Failed)]
    after = [event.step for event in director.of("kill")[loss + 1 :] if isinstance(event, Reported)]
    assert after == [15, 20]  # it was killed at step 12, and step 10 was on disk
    failure = director.of("kill")[loss]
    assert isinstance(failure, Failed)
    assert failure.reason.startswith("host-0 ended with 1 trials: ")
    assert "\n" not in failure.reason
    assert capfd.readouterr().out == "", "Ray has nothing to say on stdout"


def test_a_trial_that_always_kills_its_host_ends_and_the_sweep_goes_on(sweep: Sweep) -> None:
    director = sweep("kill-always", "t-0", "t-1", hosts=1, slots=1)
    assert director.attempts["kill-always"] == 3
    assert director.ended(Finished) == {"t-0", "t-1"}


def test_an_exception_in_the_loop_of_a_host_loses_its_trials_only_for_a_while(sweep: Sweep) -> None:
    director = sweep("break", "t-0", hosts=1, slots=2)
    assert director.ended(Finished) == {"break", "t-0"}
    reasons = {event.reason for event in director.events if isinstance(event, Failed)}
    assert any("scripted to break the loop" in reason for reason in reasons)


def test_odd_reports_end_no_sweep_and_a_diverged_trial_only_itself(sweep: Sweep) -> None:
    director = sweep("nan", "bare", "diverge", "t-0", hosts=1, slots=4)
    assert director.ended(Failed) == {"diverge"}
    assert director.ended(Finished) == {"nan", "bare", "t-0"}


@pytest.mark.parametrize(
    ("number", "expected"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_a_signal_checkpoints_what_runs_and_ends_the_hosts(
    sweep: Sweep, number: signal.Signals, expected: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeps.ray_backend.drive.STOP_TIMEOUT_S", PATIENCE_S)
    trials = names("endless", 3)
    directors: list[ScriptedDirector] = []

    def interrupt(director: ScriptedDirector, event: Event) -> None:
        if all(director.of(trial) for trial in trials) and not directors:
            directors.append(director)
            os.kill(os.getpid(), number)

    handler = signal.getsignal(number)
    with pytest.raises(expected):
        sweep(*trials, on_event=interrupt)
    [director] = directors
    last = {trial: director.of(trial)[-1] for trial in trials}
    assert {type(event) for event in last.values()} == {Checkpointed}
    assert all((director.folder / trial / "step").read_text() == str(e.step) for trial, e in last.items())
    assert signal.getsignal(number) is handler
    wait_for_the_end(director)


def test_a_host_that_does_not_see_the_sweep_folder_is_an_error_of_the_machine(
    sweep: Sweep, tmp_path: Path
) -> None:
    with pytest.raises(MachineError, match="every node of the cluster mounts"):
        sweep("t-0", folder=tmp_path / "elsewhere")


def test_a_failure_of_the_director_ends_the_sweep_as_it_is(sweep: Sweep) -> None:
    directors: list[ScriptedDirector] = []

    def full(director: ScriptedDirector, event: Event) -> None:
        directors.append(director)
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        sweep("t-0", on_event=full)
    wait_for_the_end(directors[0])


def test_too_few_processors_are_an_error_of_the_machine(session: Any, tmp_path: Path) -> None:
    from sweeps.ray_backend.session import Session

    with Session(hosts=64) as wide, pytest.raises(MachineError, match="64 hosts of 1 CPUs need 64 CPUs"):
        wide.share(threads=1)


def test_a_session_leaves_a_ray_that_it_did_not_start(session: Any) -> None:
    import ray

    from sweeps.ray_backend.session import Session

    with Session(hosts=1):
        pass
    assert ray.is_initialized()
