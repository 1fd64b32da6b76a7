"""The loop of a host process, without Ray."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from replora.config import RunConfig
from replora.train.events import Checkpointed, Finished, Reported
from sweeps.ray_backend.contract import Trainer
from sweeps.ray_backend.loop import Admit, HostLoop, News, Started, Withdraw
from tests.sweeps.scripted import ScriptedTask, ScriptedTrainer
from tests.waiting import PATIENCE_S


@contextmanager
def running(make: Callable[[], Trainer]) -> Iterator[HostLoop]:
    loop = HostLoop(make, prompt=True)
    try:
        yield loop
    finally:
        loop.stop(PATIENCE_S)


def task(folder: Path, name: str, attempt: int = 1) -> Admit:
    return Admit(ScriptedTask(name, RunConfig(), folder / name, attempt))


def until_finished(loop: HostLoop, count: int) -> list[News]:
    batches: list[News] = []
    while sum(isinstance(event, Finished) for batch in batches for _, event in batch) < count:
        batches.append(loop.poll())
    return batches


def test_reports_of_one_step_travel_in_one_batch(tmp_path: Path) -> None:
    with running(lambda: ScriptedTrainer(3, 1, "cpu")) as loop:
        loop.submit([task(tmp_path, name) for name in "abc"])
        batches = until_finished(loop, 3)
    for step in (5, 10, 15, 20):
        holding = [
            batch for batch in batches if any(isinstance(e, Reported) and e.step == step for _, e in batch)
        ]
        assert len(holding) == 1


def test_reports_that_stop_nobody_travel_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.ray_backend.loop.BATCH_WAIT_S", PATIENCE_S)
    patient = HostLoop(lambda: ScriptedTrainer(1, 1, "cpu"))
    try:
        patient.submit([task(tmp_path, "a")])
        batches = until_finished(patient, 1)
    finally:
        patient.stop(PATIENCE_S)
    assert len(batches) < sum(isinstance(event, Reported) for batch in batches for _, event in batch)


def test_every_event_carries_the_attempt_that_was_admitted(tmp_path: Path) -> None:
    with running(lambda: ScriptedTrainer(1, 1, "cpu")) as loop:
        loop.submit([task(tmp_path, "a", attempt=4)])
        news = [item for batch in until_finished(loop, 1) for item in batch]
    assert isinstance(news[0][1], Started)
    assert {attempt for attempt, _ in news} == {4}


def test_commands_of_one_call_apply_in_order_before_the_next_step(tmp_path: Path) -> None:
    with running(lambda: ScriptedTrainer(1, 1, "cpu")) as loop:
        loop.submit([task(tmp_path, "endless"), Withdraw("endless"), task(tmp_path, "a")])
        news = [event for batch in until_finished(loop, 1) for _, event in batch]
    assert [event.trial for event in news if isinstance(event, Started)] == ["endless", "a"]
    assert {event.trial for event in news if isinstance(event, Reported)} == {"a"}


def test_a_withdrawn_trial_tells_no_more(tmp_path: Path) -> None:
    with running(lambda: ScriptedTrainer(2, 1, "cpu")) as loop:
        loop.submit([task(tmp_path, "endless")])
        while not any(isinstance(event, Reported) for _, event in loop.poll()):
            pass
        loop.submit([Withdraw("endless"), task(tmp_path, "a")])
        batches = until_finished(loop, 1)
    started = [index for index, batch in enumerate(batches) for _, e in batch if isinstance(e, Started)]
    later = [event.trial for batch in batches[started[0] + 1 :] for _, event in batch]
    assert set(later) == {"a"}


def test_an_exception_of_the_trainer_comes_out_of_poll(tmp_path: Path) -> None:
    with running(lambda: ScriptedTrainer(1, 1, "cpu")) as loop:
        loop.submit([task(tmp_path, "break")])
        with pytest.raises(RuntimeError, match="scripted to break the loop"):
            until_finished(loop, 1)


def test_a_trainer_that_cannot_be_made_comes_out_of_poll() -> None:
    def broken() -> Trainer:
        raise ImportError("no torch here")

    with running(broken) as loop, pytest.raises(ImportError, match="no torch here"):
        loop.poll()


def test_stop_checkpoints_what_runs_and_wakes_an_open_poll(tmp_path: Path) -> None:
    batches: list[News] = []
    with running(lambda: ScriptedTrainer(2, 1, "cpu")) as loop:
        loop.submit([task(tmp_path, "endless-1"), task(tmp_path, "endless-2")])
        loop.poll()
        assert loop.stop(PATIENCE_S)
        reader = threading.Thread(target=lambda: batches.append(loop.poll()))
        reader.start()
        reader.join(PATIENCE_S)
        assert not reader.is_alive()
    last = [event for _, event in batches[-1][-2:]]
    assert [type(event) for event in last] == [Checkpointed, Checkpointed]
    assert {event.trial for event in last} == {"endless-1", "endless-2"}


def test_an_idle_loop_stops_at_once() -> None:
    with running(lambda: ScriptedTrainer(2, 1, "cpu")) as loop:
        assert loop.stop(PATIENCE_S)
