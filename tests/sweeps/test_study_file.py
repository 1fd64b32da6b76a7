"""The study that optuna-dashboard opens holds what the ledger holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from replora.cli import main
from replora.errors import ConfigError
from replora.train.events import Failed
from sweeps.best import select
from sweeps.ledger import Ledger, SweepView
from sweeps.search import write_study
from tests.sweeps.simulated import SimulatedHost, begin, grid, run, sweep
from tests.sweeps.test_population import LearningHost, pbt

STATES = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed"}


def loaded(path: Path) -> optuna.Study:
    return optuna.load_study(study_name=None, storage=JournalStorage(JournalFileBackend(str(path))))


def exported(folder: Path, **changes: Any) -> tuple[optuna.Study, SweepView]:
    host = SimulatedHost(3, faults={5: Failed("", 0, "diverged", "nan")})
    view = run(folder, sweep(**changes), host).view
    assert write_study(folder, folder / "study.log") == len(view.trials)
    return loaded(folder / "study.log"), view


def test_optuna_reads_every_trial_with_its_state_values_and_params(tmp_path: Path) -> None:
    study, view = exported(tmp_path)
    assert {trial.state.name for trial in study.trials} == set(STATES)
    for ours, theirs in zip(view.trials.values(), study.trials, strict=True):
        assert STATES[theirs.state.name] == ours.state
        assert theirs.params == ours.point
        assert theirs.user_attrs["fingerprint"] == ours.fingerprint
        assert theirs.value == ours.objective
        assert theirs.intermediate_values == {step: m["accuracy"] for step, m in ours.reports}
        assert theirs.datetime_start is not None
        assert theirs.datetime_complete is not None


def test_the_best_trial_is_the_same(tmp_path: Path) -> None:
    study, view = exported(tmp_path)
    finished = [trial for trial in view.trials.values() if trial.state == "finished"]
    assert study.best_value == max(trial.objective or 0 for trial in finished)


def test_the_study_says_what_the_sweep_chose_and_what_its_schedules_follow(tmp_path: Path) -> None:
    study, view = exported(tmp_path)
    best = select(view).best
    assert best is not None
    numbers = ", ".join(str(trial.number) for trial in best.trials)
    assert study.user_attrs["best configuration"].endswith(f"(trials {numbers}, their mean)")
    assert study.user_attrs["schedule"] == "of a trial's full length, also where it is stopped before"


def test_a_final_run_is_not_the_end_of_its_trial(tmp_path: Path) -> None:
    view = run(tmp_path, grid(), SimulatedHost(3)).view
    write_study(tmp_path, tmp_path / "study.log")
    before = [trial.datetime_complete for trial in loaded(tmp_path / "study.log").trials]
    with Ledger.open(tmp_path) as ledger:
        ledger.append("final", next(iter(view.trials)), metrics={"test_accuracy": 0.5}, folder="final")
    write_study(tmp_path, tmp_path / "study.log")
    assert [trial.datetime_complete for trial in loaded(tmp_path / "study.log").trials] == before


def test_a_study_of_several_objectives_has_their_values_and_names(tmp_path: Path) -> None:
    objectives = [{"metric": "accuracy"}, {"metric": "trainable_parameters"}]
    study, view = exported(tmp_path, objective=objectives, pruner={})
    assert study.metric_names == ["accuracy", "trainable_parameters"]
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    ours = [trial for trial in view.trials.values() if trial.state == "finished"]
    theirs = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    assert [trial.values for trial in theirs] == [
        [trial.metrics["accuracy"], trial.metrics["trainable_parameters"]] for trial in ours
    ]


def test_conditional_points_have_only_their_own_params(tmp_path: Path) -> None:
    space = {
        "method.name": {"values": ("lora", "replora")},
        "method.hidden": {"log_integers": (8, 64), "when": {"method.name": ("replora",)}},
    }
    study, view = exported(tmp_path, space=space)
    assert [trial.params for trial in study.trials] == [trial.point for trial in view.trials.values()]
    assert {len(trial.params) for trial in study.trials} == {1, 2}


def test_a_sweep_that_runs_has_running_and_waiting_trials(tmp_path: Path) -> None:
    from sweeps.director import Director

    with begin(tmp_path, grid(seeds=(0, 1))) as ledger:
        director = Director(grid(seeds=(0, 1)), ledger)
        task = director.ask()
        assert task is not None
        director.started(task.fingerprint, "host")
    write_study(tmp_path, tmp_path / "study.log")
    assert [t.state.name for t in loaded(tmp_path / "study.log").trials] == ["RUNNING", "WAITING"]


def test_copies_of_a_population_say_whose_they_are(tmp_path: Path) -> None:
    run(tmp_path, pbt(), LearningHost(6))
    write_study(tmp_path, tmp_path / "study.log")
    copies = [
        t.user_attrs["copy_of"] for t in loaded(tmp_path / "study.log").trials if "copy_of" in t.user_attrs
    ]
    assert len(copies) == 6
    assert all("at step" in text for text in copies)


def test_an_older_study_is_replaced_and_any_other_file_is_not(tmp_path: Path) -> None:
    run(tmp_path, grid(), SimulatedHost(3))
    for _ in range(2):
        write_study(tmp_path, tmp_path / "study.log")
    assert len(loaded(tmp_path / "study.log").trials) == 6
    other = tmp_path / "mine.txt"
    other.write_text("keep me")
    with pytest.raises(ConfigError, match=r"mine.txt is there and is no Optuna journal"):
        write_study(tmp_path, other)
    assert other.read_text() == "keep me"


def test_the_verb_names_the_command_of_the_dashboard(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, grid(), SimulatedHost(3))
    assert main(["export-study", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert f"6 trials are in {tmp_path / 'study.log'}" in said
    assert f"optuna-dashboard {tmp_path / 'study.log'}" in said
