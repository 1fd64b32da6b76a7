"""Scripted trials through a real Ray and Tune's real controller."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from replora.errors import MachineError
from replora.train.events import Checkpointed, Event, Failed, Finished, Reported
from sweeps.ray_backend.contract import HostPlan
from tests.sweeps.scripted import ScriptedDirector, ScriptedTrainer

SLOTS = 3


@pytest.fixture(scope="module")
def session() -> Iterator[Any]:
    from sweeps.ray_backend.session import Session

    with Session(hosts=2) as started:
        yield started


Sweep = Callable[..., ScriptedDirector]


@pytest.fixture
def sweep(session: Any, tmp_path: Path) -> Sweep:
    """Runs named trials to the end on two hosts of three slots; gives the director."""
    from sweeps.ray_backend.drive import drive

    def run(*names: str, hosts: int = 2, slots: int = SLOTS, **options: Any) -> ScriptedDirector:
        director = ScriptedDirector(tmp_path, names)
        on_event = options.pop("on_event", None)
        if on_event:
            director.on_event = lambda event: on_event(director, event)
        plan = HostPlan(hosts, slots, options.pop("threads", 1), options.pop("folder", tmp_path))
        drive(director, session, plan, options.pop("on_idle", None), ScriptedTrainer)
        return director

    return run


def names(prefix: str, count: int) -> list[str]:
    return [f"{prefix}-{index}" for index in range(count)]


def reported(director: ScriptedDirector, trial: str) -> list[int]:
    return [event.step for event in director.of(trial) if isinstance(event, Reported)]


def all_end(director: ScriptedDirector, within_s: float = 5.0) -> bool:
    """Whether every process that reported ends within a while."""
    reports = [event for event in director.events if isinstance(event, Reported)]
    processes = {int(event.metrics["pid"]) for event in reports}
    assert processes
    deadline = time.monotonic() + within_s
    while any(is_running(process) for process in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_every_trial_finishes_once_and_reports_every_step(sweep: Sweep) -> None:
    trials = names("t", 14)
    director = sweep(*trials)
    assert director.done
    assert [reported(director, trial) for trial in trials] == [[5, 10, 15, 20]] * len(trials)
    assert [event.trial for event in director.events if isinstance(event, Finished)].count("t-3") == 1


def test_no_trial_is_asked_before_a_slot_is_free(sweep: Sweep) -> None:
    director = sweep(*names("t", 20), *names("prune", 4))
    assert director.most_active == 2 * SLOTS


def test_a_slot_refills_while_its_neighbour_runs_on(sweep: Sweep) -> None:
    director = sweep("slow", *names("t", 6), hosts=1, slots=2)
    order = [event.trial for event in director.events if isinstance(event, Finished)]
    assert order == [*names("t", 6), "slow"]


def test_both_hosts_get_trials(sweep: Sweep) -> None:
    director = sweep(*names("t", 6))
    used = [director.hosts[trial] for trial in names("t", 6)]
    assert used.count(["host-0"]) == used.count(["host-1"]) == SLOTS


def test_tune_sees_every_report_of_every_trial(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    from sweeps.ray_backend.controller import DirectorScheduler

    seen: list[tuple[str, int]] = []
    original = DirectorScheduler.on_trial_result

    def spy(self: Any, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        seen.append((trial.trial_id, result["training_iteration"]))
        return original(self, controller, trial, result)

    monkeypatch.setattr(DirectorScheduler, "on_trial_result", spy)
    sweep(*names("t", 3), hosts=1)
    assert sorted(seen) == [(f"t-{n}-1", step) for n in range(3) for step in (5, 10, 15, 20)]


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


def test_a_pruned_trial_stops_and_its_slot_goes_to_the_next(sweep: Sweep) -> None:
    director = sweep("prune-0", "t-0", "t-1", hosts=1, slots=1)
    assert reported(director, "prune-0") == [5]
    assert director.ended(Finished) == {"t-0", "t-1"}


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


def test_a_lost_trial_goes_on_from_its_checkpoint(sweep: Sweep) -> None:
    director = sweep("kill", hosts=1, slots=1)
    assert director.attempts == {"kill": 2}
    [loss] = [index for index, event in enumerate(director.of("kill")) if isinstance(event, Failed)]
    after = [event.step for event in director.of("kill")[loss + 1 :] if isinstance(event, Reported)]
    assert after == [15, 20]  # it was killed at step 12, and step 10 was on disk


def test_the_reason_of_a_loss_names_the_host_and_fits_a_line(sweep: Sweep) -> None:
    director = sweep("kill", hosts=1, slots=1)
    [failure] = [event for event in director.events if isinstance(event, Failed)]
    assert failure.reason.startswith("host-0 ended with 1 trials: ")
    assert "\n" not in failure.reason


def test_a_trial_that_always_kills_its_host_ends_and_the_sweep_goes_on(sweep: Sweep) -> None:
    director = sweep("kill-always", "t-0", "t-1", hosts=1, slots=1)
    assert director.attempts["kill-always"] == 3
    assert director.ended(Finished) == {"t-0", "t-1"}


def test_an_exception_in_the_loop_of_a_host_loses_its_trials_only_for_a_while(sweep: Sweep) -> None:
    director = sweep("break", "t-0", hosts=1, slots=2)
    assert director.ended(Finished) == {"break", "t-0"}
    reasons = {event.reason for event in director.events if isinstance(event, Failed)}
    assert any("scripted to break the loop" in reason for reason in reasons)


@pytest.mark.parametrize("odd", ["nan", "bare"], ids=["NaN", "no metric"])
def test_an_odd_report_does_not_end_the_sweep(sweep: Sweep, odd: str) -> None:
    director = sweep(odd, "t-0", hosts=1)
    assert director.ended(Finished) == {odd, "t-0"}


def test_a_diverged_trial_is_failed_and_its_neighbours_finish(sweep: Sweep) -> None:
    director = sweep("diverge", "t-0", hosts=1)
    assert director.ended(Failed) == {"diverge"}
    assert director.ended(Finished) == {"t-0"}


def test_a_host_has_the_threads_that_were_asked_for_and_jemalloc(sweep: Sweep) -> None:
    director = sweep("t-0", hosts=1, threads=2)
    reports = [event for event in director.events if isinstance(event, Reported)]
    assert {event.metrics["omp"] for event in reports} == {2.0}
    assert {event.metrics["jemalloc"] for event in reports} == {float(sys.platform == "linux")}


def test_no_host_outlives_its_sweep(sweep: Sweep) -> None:
    assert all_end(sweep(*names("t", 6)))


def test_ray_says_nothing_on_stdout(sweep: Sweep, capfd: pytest.CaptureFixture[str]) -> None:
    sweep("kill", hosts=1)
    assert capfd.readouterr().out == ""


def test_the_display_is_called_while_trials_run(sweep: Sweep) -> None:
    calls: list[int] = []
    sweep("slow", hosts=1, on_idle=lambda: calls.append(1))
    assert len(calls) > 3


@pytest.mark.parametrize(
    ("number", "expected"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_a_signal_checkpoints_what_runs_and_ends_the_hosts(
    sweep: Sweep, number: signal.Signals, expected: type[BaseException]
) -> None:
    directors: list[ScriptedDirector] = []

    def interrupt(director: ScriptedDirector, event: Event) -> None:
        running = all(director.of(trial) for trial in ("slow-a", "slow-b", "slow-c"))
        if running and not directors:
            directors.append(director)
            os.kill(os.getpid(), number)

    handler = signal.getsignal(number)
    with pytest.raises(expected):
        sweep("slow-a", "slow-b", "slow-c", on_event=interrupt)
    [director] = directors
    last = {trial: director.of(trial)[-1] for trial in ("slow-a", "slow-b", "slow-c")}
    assert {type(event) for event in last.values()} == {Checkpointed}
    assert all((director.folder / trial / "step").read_text() == str(e.step) for trial, e in last.items())
    assert signal.getsignal(number) is handler
    assert all_end(director)


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
    assert all_end(directors[0])


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
