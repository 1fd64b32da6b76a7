from __future__ import annotations

import os
import signal
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from replora.errors import ConfigError, DataError, LedgerError, MachineError, TrackingError
from sweeps import backend, continuing
from sweeps.config import SweepConfig
from sweeps.ledger import LEDGER_NAME, Ledger, read_ledger, read_lines
from sweeps.run import resume_sweep, run_sweep
from tests.sweeps.drivers import killed_at, replora
from tests.sweeps.simulated import SimulatedHost, grid


@pytest.fixture(autouse=True)
def hosts(monkeypatch: pytest.MonkeyPatch) -> list[SimulatedHost]:
    """Hosts that were made; each trains by formula."""
    made: list[SimulatedHost] = []

    def make(slots: int, threads: int) -> SimulatedHost:
        made.append(SimulatedHost(slots))
        return made[-1]

    monkeypatch.setattr(backend, "_host", make)
    return made


def local(**changes: Any) -> SweepConfig:
    return grid(**{"backend": "in-process", **changes})


def raw(folder: Path) -> bytes:
    return (folder / LEDGER_NAME).read_bytes()


def interrupted(folder: Path, config: SweepConfig, monkeypatch: pytest.MonkeyPatch, after: int = 5) -> None:
    """Runs a sweep and sends Ctrl-C to it after some steps."""
    steps = iter(range(after, -1, -1))
    real = SimulatedHost.step

    def step(self: SimulatedHost) -> Any:
        if next(steps) == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self)

    with monkeypatch.context() as patch:
        patch.setattr(SimulatedHost, "step", step)
        with pytest.raises(KeyboardInterrupt):
            run_sweep(config, folder)


def test_a_sweep_leaves_what_the_documents_promise(sweep_folder: Path) -> None:
    result = run_sweep(local(), sweep_folder)
    assert result.view.closed == "done"
    for name in ("sweep.yaml", "ledger.jsonl", "best.yaml", "report.html"):
        assert (sweep_folder / name).stat().st_size > 0
    assert SweepConfig.model_validate(yaml.safe_load((sweep_folder / "sweep.yaml").read_text())) == local()


def test_everything_is_in_mlflow_when_the_sweep_ends(sweep_folder: Path) -> None:
    assert run_sweep(local(), sweep_folder).undelivered == 0


def test_the_same_command_on_a_finished_sweep_trains_nothing(
    sweep_folder: Path, hosts: list[SimulatedHost]
) -> None:
    first = run_sweep(local(), sweep_folder)
    before = raw(sweep_folder)
    again = run_sweep(local(), sweep_folder)
    assert len(hosts) == 1
    assert raw(sweep_folder) == before
    assert again.best == first.best


def test_ctrl_c_checkpoints_and_says_how_to_go_on(
    sweep_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted(sweep_folder, local(resources={"slots": 2}), monkeypatch)
    assert f"Go on with: replora resume {sweep_folder}" in capsys.readouterr().err
    assert [line["event"] for line in read_lines(sweep_folder)][-2:] == ["checkpointed"] * 2


def test_resume_trains_no_finished_trial_again(
    sweep_folder: Path, monkeypatch: pytest.MonkeyPatch, hosts: list[SimulatedHost]
) -> None:
    interrupted(sweep_folder, local(resources={"slots": 2}), monkeypatch)
    finished = {name for name, trial in read_ledger(sweep_folder).trials.items() if trial.state == "finished"}
    assert len(finished) == 2
    result = resume_sweep(sweep_folder)
    assert not finished & {name for name, _ in hosts[1].admitted}
    assert Counter(trial.state for trial in result.view.trials.values()) == {"finished": 6}


def test_the_same_command_goes_on_with_a_sweep_that_was_cut_off(
    sweep_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(sweep_folder, local(resources={"slots": 2}), monkeypatch)
    assert run_sweep(local(resources={"slots": 3}), sweep_folder).view.closed == "done"


def test_a_folder_of_another_sweep_is_refused_with_the_differences(sweep_folder: Path) -> None:
    run_sweep(local(), sweep_folder)
    before = raw(sweep_folder)
    with pytest.raises(LedgerError, match=r"belongs to another sweep(.|\n)*run.optim.eps: 1e-08 -> 0.01"):
        run_sweep(local(run={"optim": {"eps": 0.01}}), sweep_folder)
    assert raw(sweep_folder) == before


def test_another_layout_or_server_is_the_same_sweep() -> None:
    other = local(resources={"hosts": 7}, tracking={"uri": "http://x"}, max_failures=9)
    assert continuing.sweep_fingerprint(other) == continuing.sweep_fingerprint(local())


def test_resume_refuses_changed_code_and_libraries(
    sweep_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(sweep_folder, local(), monkeypatch, after=2)
    recorded = read_ledger(sweep_folder).versions
    monkeypatch.setattr(continuing, "versions", lambda: {**recorded, "torch": "9.9"})
    with pytest.raises(LedgerError, match=r"torch: 2\S+ -> 9.9(.|\n)*--accept-changes"):
        resume_sweep(sweep_folder)


def test_accepted_changes_are_recorded(sweep_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(sweep_folder, local(), monkeypatch, after=2)
    recorded = read_ledger(sweep_folder).versions
    monkeypatch.setattr(continuing, "versions", lambda: {**recorded, "torch": "9.9"})
    resume_sweep(sweep_folder, accept_changes=True)
    (line,) = [line for line in read_lines(sweep_folder) if line["event"] == "resumed"]
    assert line["accepted"] == [f"torch: {recorded['torch']} -> 9.9"]


@pytest.mark.parametrize("package", ["ray", "mlflow"])
def test_a_library_that_moves_no_result_may_change(
    sweep_folder: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    interrupted(sweep_folder, local(), monkeypatch, after=2)
    recorded = read_ledger(sweep_folder).versions
    monkeypatch.setattr(continuing, "versions", lambda: {**recorded, package: "9.9"})
    assert resume_sweep(sweep_folder).view.closed == "done"


def edited(folder: Path, **changes: Any) -> None:
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))


def test_an_edited_space_cannot_go_on(sweep_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(sweep_folder, local(), monkeypatch, after=2)
    edited(sweep_folder, space={"optim.lr": {"values": [0.5]}})
    with pytest.raises(ConfigError, match=r"was changed since the sweep began(.|\n)*space"):
        resume_sweep(sweep_folder, accept_changes=True)


def test_a_finished_sweep_can_be_confirmed_afterwards(sweep_folder: Path) -> None:
    run_sweep(local(), sweep_folder)
    edited(sweep_folder, confirm={"top": 1, "seeds": [5, 6]})
    with pytest.raises(LedgerError, match=r"confirm.top: 0 -> 1"):
        resume_sweep(sweep_folder)
    result = resume_sweep(sweep_folder, accept_changes=True)
    assert result.selection.stage == "confirm"
    assert Counter(trial.stage for trial in result.view.trials.values()) == {"search": 6, "confirm": 2}


def test_more_trials_can_be_drawn_afterwards(sweep_folder: Path) -> None:
    space = {"optim.lr": {"log_uniform": (1e-4, 1e-1)}}
    run_sweep(local(space=space, search={"name": "optuna", "trials": 3}), sweep_folder)
    edited(sweep_folder, search={"name": "optuna", "trials": 5})
    assert len(resume_sweep(sweep_folder, accept_changes=True).view.trials) == 5


def test_a_sweep_whose_trials_all_fail_is_closed_as_failed(
    sweep_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        backend, "_host", lambda slots, _: SimulatedHost(slots, lambda config, step: float("nan"))
    )
    result = run_sweep(local(), sweep_folder)
    assert (result.view.closed, result.best) == ("failed", None)
    assert not (sweep_folder / "best.yaml").exists()
    assert (sweep_folder / "report.html").exists()


def test_a_faulty_sweep_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        run_sweep(local(space={"optim.weight_decy": {"values": (0.1,)}}), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_an_unreachable_server_is_told_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(TrackingError):
        run_sweep(local(tracking={"uri": "http://127.0.0.1:9"}), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_points_to_try_first_and_the_order_of_keys_do_not_keep_a_sweep_from_going_on(
    sweep_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ({"optim.weight_decay": 1e-2, "optim.lr": 1e-3},)  # the ledger sorts the keys of both
    space = {"optim.weight_decay": {"values": (1e-4, 1e-2)}, "optim.lr": {"values": (1e-3, 1e-2, 1e-1)}}
    config = local(space=space, search={"first": first}, resources={"slots": 2})
    interrupted(sweep_folder, config, monkeypatch)
    again = local(space=dict(reversed(space.items())), search={"first": first}, resources={"slots": 2})
    interrupted(sweep_folder, again, monkeypatch)
    (sweep_folder / "sweep.yaml").unlink()
    points = [trial.point for trial in resume_sweep(sweep_folder).view.trials.values()]
    assert points[0] == first[0]
    assert len({tuple(sorted(point.items())) for point in points}) == len(points) == 6
    assert [point["optim.lr"] for point in points[1:]] == [1e-3, 1e-2, 1e-1, 1e-2, 1e-1]


def test_a_sweep_that_has_begun_goes_on_without_its_server(
    sweep_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sweeps.run.RECORDER_S", 0.1)
    interrupted(sweep_folder, local(), monkeypatch, after=2)
    result = run_sweep(local(tracking={"uri": "http://127.0.0.1:9"}), sweep_folder)
    assert (result.view.closed, len(result.view.trials)) == ("done", 6)
    assert result.undelivered > 0
    assert f"replora sync {sweep_folder}" in caplog.text


def test_a_folder_that_another_process_drives_is_left_alone(sweep_folder: Path) -> None:
    with Ledger.open(sweep_folder), pytest.raises(LedgerError, match="another process drives this sweep"):
        run_sweep(local(), sweep_folder)
    assert raw(sweep_folder) == b""


def test_images_are_found_again_from_any_folder(
    sweep_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "images").mkdir()
    monkeypatch.chdir(tmp_path)
    run = {
        "backbone": {"name": "timm/vit_tiny_patch16_224"},
        "task": {"name": "image-folder", "root": "images"},
    }
    view = run_sweep(local(run=run, resources={"slots": 2}), sweep_folder).view
    assert {trial.config["task"]["root"] for trial in view.trials.values()} == {str(tmp_path / "images")}


# --- the real thing, in a process that is killed ----------------------------------------------------

REAL = """
name: real
backend: in-process
run:
  backbone: {name: vit-digits, weights: random}
  train: {steps: 40, batch: 4, eval_every: 20, checkpoint_every: 10}
space:
  optim.lr: {values: [0.001, 0.002, 0.003, 0.004, 0.005, 0.006]}
resources: {slots: 2, threads: 1}
"""


@pytest.mark.slow
def test_a_killed_driver_resumes_without_training_a_finished_trial_again(
    sweep_folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "real.yaml"
    file.write_text(REAL)
    killed_at("finished", 2, ["sweep", str(file), "--dir", str(sweep_folder)])
    finished = {name for name, trial in read_ledger(sweep_folder).trials.items() if trial.state == "finished"}
    cut = read_ledger(sweep_folder).size
    command = replora("resume", str(sweep_folder))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    view = read_ledger(sweep_folder)
    assert Counter(trial.state for trial in view.trials.values()) == {"finished": 6}
    touched = {line["trial"] for line in read_lines(sweep_folder, offset=cut)}
    assert 2 <= len(finished) < 6
    assert not finished & touched


def test_a_larger_budget_goes_on_without_anybodys_consent(
    sweep_folder: Path, hosts: list[SimulatedHost]
) -> None:
    first = run_sweep(local(budget={"trials": 2}), sweep_folder)
    assert (first.view.closed, len(first.view.trials)) == ("done", 2)
    second = run_sweep(local(budget={"trials": 4}), sweep_folder)
    assert len(second.view.trials) == 4
    path = sweep_folder / "sweep.yaml"
    path.write_text(path.read_text().replace("trials: 4", "trials: null"))
    third = resume_sweep(sweep_folder)
    assert [trial.state for trial in third.view.trials.values()] == ["finished"] * 6
    assert [len(host.admitted) for host in hosts] == [2, 2, 2]


def test_a_sweep_of_several_objectives_hands_over_its_front(sweep_folder: Path) -> None:
    space = {"method.rank": {"values": (2, 4)}, "optim.lr": {"values": (1e-3, 1e-2)}}
    objectives = [{"metric": "accuracy"}, {"metric": "trainable_parameters"}]
    result = run_sweep(local(space=space, objective=objectives), sweep_folder)
    document = yaml.safe_load((sweep_folder / "best.yaml").read_text())
    assert document == result.best
    assert [each["point"] for each in document["front"]] == [{"method.rank": 2, "optim.lr": 1e-2}]
    assert "Pareto front" in (sweep_folder / "report.html").read_text()


def test_a_warm_start_is_told_at_its_start(
    sweep_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_sweep(local(name="before"), sweep_folder)
    monkeypatch.chdir(tmp_path)
    search = {"name": "optuna", "trials": 3, "warm_start": (sweep_folder.name,)}
    result = run_sweep(local(search=search), tmp_path / "new")
    assert "6 configurations of before told to the searcher\n" in capsys.readouterr().err
    assert result.view.warm[0]["folder"] == str(sweep_folder)


def test_a_folder_that_cannot_be_written_is_named(sweep_folder: Path) -> None:
    (sweep_folder / "file").write_text("")
    with pytest.raises(MachineError, match=r"file: the sweep's folder cannot be written"):
        run_sweep(local(), sweep_folder / "file")


def test_changed_data_is_refused_until_it_is_accepted(
    sweep_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(sweep_folder, local(), monkeypatch, after=2)
    monkeypatch.setattr(SimulatedHost, "data", "sha256:other")
    before = raw(sweep_folder)
    with pytest.raises(DataError, match=r"sha256:other instead of sha256:data(.|\n)*--accept-changes"):
        resume_sweep(sweep_folder)
    assert b"sha256:other" not in raw(sweep_folder)[len(before) :]
    view = resume_sweep(sweep_folder, accept_changes=True).view
    assert view.closed == "done"
    assert view.data == "sha256:other"


def test_a_clock_that_goes_backwards_changes_no_answer(
    sweep_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = iter(range(10**9, 0, -1000))
    monkeypatch.setattr("sweeps.ledger.time.time", lambda: float(next(moments)))
    view = run_sweep(local(), sweep_folder).view
    assert {trial.state for trial in view.trials.values()} == {"finished"}


def test_two_resumes_at_once_are_one(sweep_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(sweep_folder, local(), monkeypatch, after=2)
    with Ledger.open(sweep_folder), pytest.raises(LedgerError, match="another process drives this sweep"):
        resume_sweep(sweep_folder)
    assert resume_sweep(sweep_folder).view.closed == "done"
