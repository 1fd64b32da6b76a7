from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from replora.errors import DataError
from replora.train.events import Checkpointed, Failed, Finished, Reported
from sweeps.config import SweepConfig
from sweeps.director import Director, TrialTask
from sweeps.groups import groups_of
from sweeps.ledger import LEDGER_NAME, TrialView, read_ledger, read_lines
from tests.sweeps.simulated import SimulatedHost, begin, cut_and_compare, grid, run, score, sweep


@contextmanager
def opened(folder: Path, config: SweepConfig) -> Iterator[Director]:
    with begin(folder, config) as ledger:
        yield Director(config, ledger)


@pytest.fixture
def director(tmp_path: Path) -> Iterator[Director]:
    with opened(tmp_path, grid()) as made:
        yield made


def start(director: Director) -> TrialTask:
    task = director.ask()
    assert task is not None
    director.started(task.fingerprint, "host", "sha256:data")
    return task


def metrics(value: float) -> dict[str, float]:
    return {"accuracy": value, "val_loss": 1.0}


def finish(director: Director, task: TrialTask, value: float = 0.5) -> None:
    director.handle(Finished(task.fingerprint, 200, metrics(value), str(task.folder / "adapter")))


def trial(director: Director, task: TrialTask) -> TrialView:
    return director.view.trials[task.fingerprint]


def events(folder: Path) -> list[str]:
    return [line["event"] for line in read_lines(folder)]


# --- a sweep from start to end ----------------------------------------------------------------------


def test_a_sweep_trains_every_trial_once(tmp_path: Path) -> None:
    host = SimulatedHost(4)
    director = run(tmp_path, grid(seeds=(0, 1)), host)
    assert director.done
    assert [trial.state for trial in director.view.trials.values()] == ["finished"] * 12
    assert max(Counter(name for name, _ in host.admitted).values()) == 1


def test_the_view_is_what_the_ledger_says(tmp_path: Path) -> None:
    assert run(tmp_path, sweep()).view == read_ledger(tmp_path)


def test_trials_are_numbered_in_the_order_of_the_grid_and_its_seeds(tmp_path: Path) -> None:
    view = run(tmp_path, grid(seeds=(3, 5))).view
    assert [t.number for t in view.trials.values()] == list(range(12))
    assert [t.seed for t in view.trials.values()] == [3, 5] * 6


def test_the_objective_is_the_metric_at_the_last_step_not_at_the_best(tmp_path: Path) -> None:
    host = SimulatedHost(2, lambda config, step: {100: 0.9, 200: 0.4}.get(step, 0.1))
    view = run(tmp_path, grid(), host).view
    assert {t.objective for t in view.trials.values()} == {0.4}


def test_fresh_seeds_confirm_the_best_after_the_search_has_ended(tmp_path: Path) -> None:
    run(tmp_path, grid(confirm={"top": 2, "seeds": (7, 8)}))
    lines = list(read_lines(tmp_path))
    confirmed = [line for line in lines if line["event"] == "asked" and line["stage"] == "confirm"]
    last_search = max(
        line["seq"] for line in lines if line["event"] == "finished" and line["seq"] < confirmed[0]["seq"]
    )
    assert sum(line["event"] == "finished" for line in lines if line["seq"] <= last_search) == 6
    assert [(line["point"]["optim.lr"], line["seed"]) for line in confirmed] == [(1e-2, 7), (1e-2, 8)] * 2


def test_pruned_configurations_are_not_confirmed(tmp_path: Path) -> None:
    view = run(tmp_path, sweep()).view
    confirmed = [group for group in groups_of(view) if group.confirm]
    assert len(confirmed) == 2
    assert all(group.searched for group in confirmed)
    assert any(t.state == "pruned" for t in view.trials.values())


def test_confirmation_is_not_pruned(tmp_path: Path) -> None:
    host = SimulatedHost(3, lambda config, step: score(config, step) - (0.9 if config.seed else 0))
    view = run(tmp_path, sweep(), host).view
    assert {t.state for t in view.trials.values() if t.stage == "confirm"} == {"finished"}


def test_a_pruned_trial_keeps_its_value_its_step_and_the_reason(tmp_path: Path) -> None:
    view = run(tmp_path, sweep()).view
    pruned = [t for t in view.trials.values() if t.state == "pruned"]
    for t in pruned:
        assert t.step < 200
        assert t.objective == t.reports[-1][1]["accuracy"]
        assert "best 1/3" in t.reason


# --- what a backend relies on -----------------------------------------------------------------------


def test_a_trial_has_a_folder_named_by_its_fingerprint(director: Director, tmp_path: Path) -> None:
    task = start(director)
    assert task.folder == tmp_path / "trials" / task.fingerprint


def test_done_only_when_nothing_runs_and_nothing_is_left(director: Director) -> None:
    tasks = [start(director) for _ in range(6)]
    assert director.ask() is None
    for task in tasks:
        assert not director.done
        finish(director, task)
    assert director.done


def test_a_batch_of_events_is_recorded_with_one_write(
    director: Director, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [start(director) for _ in range(4)]
    synced: list[int] = []
    monkeypatch.setattr("os.fsync", synced.append)
    director.handle_all([Reported(task.fingerprint, 50, metrics(0.5)) for task in tasks])
    assert len(synced) == 1


def test_paths_inside_the_sweep_are_recorded_relative_to_it(director: Director) -> None:
    task = start(director)
    finish(director, task)
    assert trial(director, task).adapter == f"trials/{task.fingerprint}/adapter"


def test_hosts_with_other_data_are_refused(director: Director) -> None:
    start(director)
    task = director.ask()
    assert task is not None
    with pytest.raises(DataError, match="sha256:other instead of sha256:data"):
        director.started(task.fingerprint, "host-2", "sha256:other")


def test_many_starts_are_recorded_with_one_time_and_must_agree_on_the_data(director: Director) -> None:
    tasks = [director.ask(), director.ask()]
    one, other = (task.fingerprint for task in tasks if task is not None)
    with pytest.raises(DataError, match="sha256:b instead of sha256:a"):
        director.started_all("host", {one: "sha256:a", other: "sha256:b"})
    director.started_all("host", {one: "sha256:a", other: "sha256:a"})
    lines = [line for line in director._ledger.lines() if line["event"] == "started"]
    assert [(line["trial"], line["data"]) for line in lines] == [(one, "sha256:a"), (other, "sha256:a")]
    assert len({line["time"] for line in lines}) == 1


# --- failures ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lost", "error", "out-of-memory"])
def test_a_failed_trial_is_asked_again_with_the_next_attempt(director: Director, kind: Any) -> None:
    task = start(director)
    director.handle(Failed(task.fingerprint, 10, kind, "oops"))
    assert trial(director, task).state == "asked"
    again = director.ask()
    assert again is not None
    assert (again.fingerprint, again.attempt) == (task.fingerprint, 2)


def test_a_trial_fails_for_good_after_max_failures(tmp_path: Path) -> None:
    with opened(tmp_path, grid(max_failures=1)) as director:
        first = start(director)
        director.handle(Failed(first.fingerprint, 10, "error", "one"))
        director.handle(Failed(start(director).fingerprint, 10, "error", "two"))
        assert trial(director, first).state == "failed"
        assert trial(director, first).reason == "two"


def test_a_diverged_trial_is_not_asked_again(director: Director) -> None:
    task = start(director)
    director.handle(Failed(task.fingerprint, 10, "diverged", "loss is nan"))
    assert trial(director, task).state == "failed"
    other = director.ask()
    assert other is not None
    assert other.fingerprint != task.fingerprint


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_objective_that_is_no_number_fails_the_trial_and_stops_it(
    director: Director, value: float
) -> None:
    task = start(director)
    assert director.handle(Reported(task.fingerprint, 50, metrics(value)))
    assert (trial(director, task).state, trial(director, task).kind) == ("failed", "diverged")


def test_a_report_without_the_objective_fails_the_trial_not_the_sweep(director: Director) -> None:
    task = start(director)
    assert director.handle(Reported(task.fingerprint, 50, {"val_loss": 0.5}))
    assert "step 50 has no metric accuracy (metrics: val_loss)" in trial(director, task).reason
    assert not director.done


def test_a_sweep_with_failures_ends_with_every_other_trial_finished(tmp_path: Path) -> None:
    faults = {2: Failed("", 0, "lost", "host died"), 4: Failed("", 0, "diverged", "nan")}
    view = run(tmp_path, grid(), SimulatedHost(2, faults=faults)).view
    assert Counter(t.state for t in view.trials.values()) == {"finished": 5, "failed": 1}


# --- events from the past ---------------------------------------------------------------------------


def test_events_of_an_older_attempt_are_not_recorded(director: Director, tmp_path: Path) -> None:
    task = start(director)
    director.handle(Failed(task.fingerprint, 10, "lost", "no heartbeat"))
    start(director)
    before = events(tmp_path)
    assert director.handle(Reported(task.fingerprint, 50, metrics(0.9)), attempt=1)
    assert not director.handle(Finished(task.fingerprint, 200, metrics(0.9), "a"), attempt=1)
    assert events(tmp_path) == before


def test_events_of_an_ended_trial_are_not_recorded(director: Director, tmp_path: Path) -> None:
    task = start(director)
    finish(director, task, 0.5)
    before = events(tmp_path)
    assert director.handle(Checkpointed(task.fingerprint, 250, "x"))
    finish(director, task, 0.9)
    assert events(tmp_path) == before


def test_events_of_strangers_are_not_recorded(director: Director, tmp_path: Path) -> None:
    before = events(tmp_path)
    assert director.handle(Reported("nobody", 50, metrics(0.5)))
    assert events(tmp_path) == before


def test_a_step_that_is_repeated_after_a_restart_is_recorded_once(director: Director) -> None:
    task = start(director)
    director.handle(Reported(task.fingerprint, 50, metrics(0.5)))
    director.handle(Failed(task.fingerprint, 60, "lost", "gone"))
    while (again := start(director)).fingerprint != task.fingerprint:
        pass
    assert not director.handle(Reported(again.fingerprint, 50, metrics(0.5)))
    director.handle(Reported(again.fingerprint, 100, metrics(0.6)))
    assert [step for step, _ in trial(director, task).reports] == [50, 100]


# --- proposals that become no trial -----------------------------------------------------------------

FEW = {"method.rank": {"values": (2, 4)}, "optim.lr": {"values": (1e-3, 1e-2)}}


@pytest.mark.parametrize("name", ["random", "optuna"])
def test_the_same_configuration_is_never_trained_twice(tmp_path: Path, name: str) -> None:
    host = SimulatedHost(2)
    director = run(tmp_path, grid(space=FEW, search={"name": name, "trials": 15}), host)
    assert len(host.admitted) == len(director.view.trials) <= 4
    assert director.view.skipped == 15 - len(director.view.trials)


def test_a_known_result_is_told_again_to_the_searcher(tmp_path: Path) -> None:
    config = grid(space=FEW, search={"name": "optuna", "trials": 15})
    director = run(tmp_path, config, SimulatedHost(1))
    searcher: Any = director._agenda._proposals._searcher
    told = [
        (frozen.params["optim.lr"], frozen.params["method.rank"], frozen.value)
        for frozen in searcher._study.trials
    ]
    assert all(value is not None for _, _, value in told)
    assert len(set(told)) == len(director.view.trials)


def test_a_draw_that_is_no_valid_run_counts_as_failed(tmp_path: Path) -> None:
    space = {"train.batch": {"values": (12, 16)}, "train.micro_batch": {"values": (3, 4)}}
    director = run(tmp_path, grid(space=space, search={"name": "random", "trials": 30}))
    reasons = [line["reason"] for line in read_lines(tmp_path) if line["event"] == "skipped"]
    assert any("train.micro_batch must divide train.batch" in reason for reason in reasons)
    assert len(director.view.trials) == 3


# --- after a crash ----------------------------------------------------------------------------------


CRASHES = {
    "optuna-asha-confirm": sweep(search={"name": "optuna", "trials": 8}, confirm={"top": 1, "seeds": (1, 2)}),
    "random-seeds-duplicates": grid(space=FEW, search={"name": "random", "trials": 6}, seeds=(0, 1)),
    "grid-median": grid(pruner={"name": "median", "grace_steps": 50}, confirm={"top": 1, "seeds": (4,)}),
}


@pytest.mark.parametrize("config", CRASHES.values(), ids=CRASHES)
def test_a_sweep_cut_at_any_line_ends_as_if_it_had_never_been_cut(
    tmp_path: Path, config: SweepConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda handle: None)  # hundreds of sweeps; test_ledger.py looks at it
    cut_and_compare(tmp_path, config)


def test_a_restarted_trial_is_told_which_of_its_reports_are_recorded(director: Director) -> None:
    task = start(director)
    assert task.recorded == 0
    director.handle(Reported(task.fingerprint, 50, metrics(0.5)))
    director.handle(Checkpointed(task.fingerprint, 60, "x"))
    director.handle(Failed(task.fingerprint, 70, "lost", "gone"))
    while (again := start(director)).fingerprint != task.fingerprint:
        pass
    assert again.recorded == 50


def test_nothing_is_recorded_after_the_report_that_stops_a_trial(tmp_path: Path) -> None:
    with opened(tmp_path, grid(pruner={"name": "asha", "grace_steps": 50, "reduction": 2})) as director:
        good, bad = start(director), start(director)
        director.handle(Reported(good.fingerprint, 50, metrics(0.9)))
        two = [Reported(bad.fingerprint, step, metrics(0.1)) for step in (50, 100)]
        assert director.handle_all([*two, Checkpointed(bad.fingerprint, 100, "x")]) == {bad.fingerprint}
        trial = director.view.trials[bad.fingerprint]
        assert (trial.state, trial.step, len(trial.reports)) == ("pruned", 50, 1)


def test_trials_that_ran_go_on_from_their_checkpoints_before_new_ones_start(tmp_path: Path) -> None:
    with opened(tmp_path, grid()) as director:
        tasks = [start(director) for _ in range(3)]
        director.handle(Checkpointed(tasks[1].fingerprint, 50, "x"))
        finish(director, tasks[0])
    with opened(tmp_path, grid()) as director:
        again = [director.ask() for _ in range(3)]
        assert [task and (task.fingerprint, task.attempt) for task in again[:2]] == [
            (tasks[1].fingerprint, 2),
            (tasks[2].fingerprint, 2),
        ]
        assert again[2] is not None
        assert again[2].fingerprint not in {task.fingerprint for task in tasks}


def test_failures_before_a_crash_still_count_after_it(tmp_path: Path) -> None:
    config = grid(max_failures=1)
    with opened(tmp_path, config) as director:
        task = start(director)
        director.handle(Failed(task.fingerprint, 10, "error", "one"))
    with opened(tmp_path, config) as director:
        assert director.ask() is not None
        director.handle(Failed(task.fingerprint, 10, "error", "two"))
        assert trial(director, task).state == "failed"


def test_a_sweep_that_is_done_asks_nothing_again(tmp_path: Path) -> None:
    run(tmp_path, sweep())
    before = (tmp_path / LEDGER_NAME).read_bytes()
    host = SimulatedHost(2)
    run(tmp_path, sweep(), host)
    assert host.admitted == []
    assert (tmp_path / LEDGER_NAME).read_bytes() == before
