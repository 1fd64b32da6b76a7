"""The recorder on a real MLflow in SQLite, read back through MLflow's own client."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from replora.config import RunConfig
from replora.errors import LedgerError, TrackingError
from sweeps.ledger import Entry, Ledger
from sweeps.mlflow_recorder import MlflowRecorder, sync
from sweeps.tracking import STATE_NAME
from tests.sweeps import tracked
from tests.sweeps.tracked import rows_at, rows_due, runs_at, sweep_at, trials_at
from tests.waiting import PATIENCE_S, wait_for


def record(folder: Path, *parts: list[Entry], **options: Any) -> MlflowRecorder:
    """Writes a ledger in parts while a recorder follows it."""
    recorder = MlflowRecorder(folder, **options)
    with Ledger.open(folder) as ledger:
        recorder.start()
        for part in parts:
            ledger.append_all(part)
    assert recorder.close(PATIENCE_S) == 0
    return recorder


def adapter_trial(folder: Path) -> list[Entry]:
    """A trial with an adapter on disk."""
    adapter = folder / "trials" / "f" / "adapter"
    adapter.mkdir(parents=True)
    (adapter / "adapter.safetensors").write_bytes(b"weights")
    config = RunConfig(seed=7).model_dump(mode="json")
    asked = {"number": 9, "stage": "confirm", "point": {}, "seed": 7, "config": config}
    done = {"step": 3, "metrics": {"test_accuracy": 0.9}, "objective": 0.8, "seconds": 1.0}
    return [
        Entry("asked", "f", asked),
        Entry("started", "f", {"host": "host-1", "attempt": 1}),
        Entry("finished", "f", done | {"adapter": str(adapter.relative_to(folder))}),
    ]


def final_run(folder: Path) -> Entry:
    """What `replora train best.yaml` records of the same trial's configuration."""
    values = {"accuracy": 0.8, "test_accuracy": 0.7}
    config = RunConfig(seed=7).model_dump(mode="json")
    fields = {"folder": "/runs/final", "adapter": str(folder / "trials" / "f" / "adapter"), "config": config}
    return Entry(
        "final", "f", {**fields, "step": 3, "metrics": values, "seconds": 2.0, "versions": {}, "git": ""}
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, mlflow_schema: Path) -> Path:
    """A recorded sweep with a trial of every end."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copy(mlflow_schema, folder / "mlflow.db")
    (folder / "sweep.yaml").write_text("name: toy\n")
    ends = [entry for number, end in enumerate(("finished", "pruned", "failed", ""))
            for entry in tracked.trial(number, end=end)]  # fmt: skip
    closed = Entry("closed", None, {"state": "done"})
    record(folder, [tracked.FIRST], ends, [*adapter_trial(folder), closed])
    record(folder, [final_run(folder)])  # by another process, later
    return folder


def uri_of(folder: Path) -> str:
    return MlflowRecorder(folder).uri


def test_every_point_is_there_once(whole: Path) -> None:
    assert rows_at(uri_of(whole)) == rows_due(whole)


def test_trials_are_children_of_the_sweep(whole: Path) -> None:
    parent = sweep_at(uri_of(whole)).info.run_id
    parents = [run.data.tags["mlflow.parentRunId"] for run in trials_at(uri_of(whole)).values()]
    assert parents == [parent] * 5


def test_the_final_run_is_below_its_trial_and_has_the_values_of_the_test(whole: Path) -> None:
    (final,) = (run for run in runs_at(uri_of(whole)) if run.data.tags["kind"] == "final")
    assert final.data.tags["mlflow.parentRunId"] == trials_at(uri_of(whole))["f"].info.run_id
    assert (final.data.tags["fingerprint"], final.data.tags["folder"]) == ("f", "/runs/final")
    assert final.data.metrics == {"accuracy": 0.8, "test_accuracy": 0.7}
    assert final.info.end_time - final.info.start_time == 2000


def test_runs_end_as_their_trials_did(whole: Path) -> None:
    ends = Counter((run.info.status, run.data.tags["state"]) for run in runs_at(uri_of(whole)))
    assert ends == {
        ("FINISHED", "done"): 1,
        ("FINISHED", "finished"): 3,
        ("FINISHED", "pruned"): 1,
        ("FAILED", "failed"): 1,
        ("KILLED", "stopped"): 1,
    }


def test_the_sweeps_run_says_what_it_was(whole: Path) -> None:
    tags = sweep_at(uri_of(whole)).data.tags
    assert tags["fingerprint"] == "5eeb0f5ca1ab1e00"
    assert (tags["name"], tags["metric"], tags["direction"]) == ("toy", "accuracy", "maximize")
    assert (tags["git"], tags["version.torch"]) == ("0123abc", "2.14.1")


def test_a_trials_run_says_where_it_comes_from(whole: Path) -> None:
    tags = trials_at(uri_of(whole))["f"].data.tags
    assert (tags["trial"], tags["stage"], tags["host"], tags["sweep"]) == ("9", "confirm", "host-1", "toy")
    assert (tags["git"], tags["version.torch"]) == ("0123abc", "2.14.1")


def test_parameters_are_the_whole_configuration(whole: Path) -> None:
    params = trials_at(uri_of(whole))["f"].data.params
    assert (params["seed"], params["optim.lr"], params["method.shared"]) == ("7", "0.001", "true")
    assert params["method.targets"] == '["query", "value"]'


def test_times_are_those_of_the_ledger(whole: Path) -> None:
    lines = [json.loads(line) for line in (whole / "ledger.jsonl").read_bytes().splitlines()]
    times = {line["event"]: round(line["time"] * 1000) for line in lines if line["trial"] == "f"}
    info = trials_at(uri_of(whole))["f"].info
    assert (info.start_time, info.end_time) == (times["asked"], times["finished"])


def test_configuration_and_adapter_are_artifacts(whole: Path, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    run = trials_at(uri_of(whole))["f"].info.run_id
    client = MlflowClient(uri_of(whole))
    config = Path(client.download_artifacts(run, "config.yaml", str(tmp_path)))
    assert RunConfig.model_validate(yaml.safe_load(config.read_text())) == RunConfig(seed=7)
    adapter = Path(client.download_artifacts(run, "adapter/adapter.safetensors", str(tmp_path)))
    assert adapter.read_bytes() == b"weights"


def test_artifacts_lie_in_the_sweep(whole: Path) -> None:
    uris = {run.info.artifact_uri for run in runs_at(uri_of(whole))}
    assert all(uri.startswith((whole / "mlartifacts").as_uri()) for uri in uris)


def test_the_sweeps_documents_are_artifacts(whole: Path) -> None:
    from mlflow import MlflowClient

    files = MlflowClient(uri_of(whole)).list_artifacts(sweep_at(uri_of(whole)).info.run_id)
    assert [file.path for file in files] == ["sweep.yaml"]


def test_sync_into_a_new_database_gives_the_same(whole: Path, sweep_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(whole, tmp_path / "copy", ignore=shutil.ignore_patterns("mlflow*", ".mlflow*"))
    result = sync(copy, f"sqlite:///{sweep_folder}/mlflow.db")
    assert (result.trials, result.points, result.refused) == (6, sum(rows_due(whole).values()) + 2, ())
    assert rows_at(result.uri) == rows_due(whole)
    assert json.loads((copy / STATE_NAME).read_text())["run"] == result.run


def test_sync_into_what_has_it_already_changes_nothing(whole: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(whole, tmp_path / "copy")
    before = {run.info.run_id: run.data.to_dictionary() for run in runs_at(uri_of(copy))}
    sync(copy, uri_of(copy))
    assert {run.info.run_id: run.data.to_dictionary() for run in runs_at(uri_of(copy))} == before
    assert rows_at(uri_of(copy)) == rows_due(whole)


def test_sync_gives_back_what_a_restored_database_lacks(whole: Path, tmp_path: Path) -> None:
    """The backup was taken in mid-sweep: the run of one trial is missing altogether."""
    from mlflow import MlflowClient

    copy = shutil.copytree(whole, tmp_path / "copy")
    client, uri = MlflowClient(uri_of(copy)), uri_of(copy)
    client.delete_run(trials_at(uri)[f"{0:016x}"].info.run_id)
    assert rows_at(uri) != rows_due(whole)
    sync(copy, uri)
    assert rows_at(uri) == rows_due(whole)


def test_a_moved_sweep_is_recorded_where_it_lies(whole: Path, tmp_path: Path) -> None:
    old = shutil.copytree(whole, tmp_path / "old")
    new = old.rename(tmp_path / "new")
    result = sync(new)
    assert result.uri == f"sqlite:///{new}/mlflow.db"
    assert rows_at(result.uri) == rows_due(whole)
    assert len(runs_at(result.uri)) == 7
    assert not old.exists()


def test_sync_of_no_sweep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="not a sweep's folder"):
        sync(tmp_path)


def test_a_folder_has_one_recorder(sweep_folder: Path) -> None:
    with Ledger.open(sweep_folder) as ledger:
        ledger.append_all(tracked.toy_sweep(1))
    recorder = MlflowRecorder(sweep_folder)
    recorder.start()
    with pytest.raises(TrackingError, match="being recorded by another process"):
        sync(sweep_folder)
    assert recorder.close(PATIENCE_S) == 0
    sync(sweep_folder)


def test_twenty_thousand_points_arrive(sweep_folder: Path) -> None:
    recorder = record(sweep_folder, list(tracked.toy_sweep(4, steps=100, metrics=50)))
    rows = rows_at(recorder.uri)
    assert sum(rows.values()) == 4 * 100 * 50 + 4
    assert rows == rows_due(sweep_folder)


def test_values_that_are_no_numbers_arrive_once(sweep_folder: Path) -> None:
    entries = [Entry("reported", f"{0:016x}", {"step": step, "metrics": {"loss": None}}) for step in (1, 2)]
    start = [tracked.FIRST, *tracked.trial(0, steps=0, end="")]
    recorder = record(sweep_folder, [*start, *entries])
    sync(sweep_folder)
    assert sorted(step for _, _, step, _, _ in rows_at(recorder.uri).elements()) == [1, 2]


def test_a_sweep_that_stops_and_resumes_is_one_run(sweep_folder: Path) -> None:
    entries = list(tracked.trial(0))
    record(sweep_folder, [tracked.FIRST, *entries[:3]])
    (trial,) = trials_at(uri_of(sweep_folder)).values()
    assert (trial.info.status, sweep_at(uri_of(sweep_folder)).info.status) == ("KILLED", "KILLED")
    resumed = Entry("resumed", None, {"versions": {"torch": "2.14.1"}, "accepted": []})
    started = Entry("started", f"{0:016x}", {"host": "host-0", "attempt": 2})
    record(sweep_folder, [resumed, started, *entries[3:], Entry("closed", None, {"state": "done"})])
    (trial,) = trials_at(uri_of(sweep_folder)).values()
    assert (trial.info.status, trial.data.tags["attempt"]) == ("FINISHED", "2")
    assert sweep_at(uri_of(sweep_folder)).info.status == "FINISHED"
    assert rows_at(uri_of(sweep_folder)) == rows_due(sweep_folder)


def test_two_sweeps_of_one_configuration_stay_apart(sweep_folder: Path, tmp_path: Path) -> None:
    uri = uri_of(sweep_folder)
    other = tmp_path / "other"
    other.mkdir()
    for folder in (sweep_folder, other):
        record(folder, list(tracked.toy_sweep(1)), uri=uri)
    assert Counter(run.data.tags["kind"] for run in runs_at(uri)) == {"sweep": 2, "trial": 2}


def test_a_run_deleted_by_hand_holds_up_no_other(
    sweep_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow import MlflowClient

    first, second = list(tracked.trial(0, end="")), list(tracked.trial(1, end=""))
    recorder = MlflowRecorder(sweep_folder)
    with Ledger.open(sweep_folder) as ledger:
        ledger.append_all([tracked.FIRST, *first, *second])
        recorder.start()
        wait_for(lambda: sum(rows_at(recorder.uri).values()) == 12)
        run = trials_at(recorder.uri)[f"{0:016x}"].info.run_id
        MlflowClient(recorder.uri).delete_run(run)
        ledger.append_all([tracked.report(0, 4), tracked.report(1, 4)])
    assert recorder.close(PATIENCE_S) == 2
    assert sum(rows_at(recorder.uri).values()) == 8
    assert f"will not have trial {0:016x}" in caplog.text


def test_a_missing_adapter_is_told_and_holds_up_nothing(
    sweep_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entries = adapter_trial(sweep_folder)
    shutil.rmtree(sweep_folder / "trials")
    recorder = record(sweep_folder, [tracked.FIRST, *entries])
    assert trials_at(recorder.uri)["f"].info.status == "FINISHED"
    assert "the adapter's folder" in caplog.text


FOLLOW = """
import logging, os, pathlib, sys, time
from sweeps.ledger import Ledger
from sweeps.mlflow_recorder import MlflowRecorder
from tests.sweeps import tracked
folder = pathlib.Path(sys.argv[1])
recorder = MlflowRecorder(folder, sys.argv[2] or None)
with Ledger.open(folder) as ledger:
    recorder.start()
    for number, entry in enumerate(list(tracked.toy_sweep(3, steps=40))[ledger.size:]):
        ledger.append_all([entry])
        if sys.argv[3]:
            time.sleep(0.03 if number < 60 else 3600)  # it will be killed
sys.exit(recorder.close(600))
"""


def follow(folder: Path, uri: str = "", *, halts: bool = False, **env: str) -> subprocess.Popen[str]:
    """A process that drives and records a sweep from where its ledger ends, or `halts` on the way."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-W", "ignore:The :DeprecationWarning", "-c", FOLLOW,
         str(folder), uri, "halts" * halts],
        env=os.environ | env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that end with the test."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


def test_a_killed_driver_loses_and_doubles_nothing(
    sweep_folder: Path, processes: list[subprocess.Popen[str]]
) -> None:
    state = sweep_folder / STATE_NAME
    processes.append(follow(sweep_folder, halts=True))
    wait_for(lambda: state.exists() and json.loads(state.read_text())["offset"] > 0)
    processes[0].send_signal(signal.SIGKILL)
    assert processes[0].wait() == -signal.SIGKILL
    assert 0 < sum(rows_due(sweep_folder).values()) < 3 * 40 * 2
    processes.append(follow(sweep_folder))
    out, err = processes[1].communicate()
    assert (processes[1].returncode, out, err) == (0, "", "")
    assert rows_at(uri_of(sweep_folder)) == rows_due(sweep_folder)
    assert sum(rows_due(sweep_folder).values()) == 3 * 40 * 2 + 3


@pytest.mark.slow
def test_two_recorders_may_create_one_database(
    tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    """And no word of theirs reaches the terminal, and the working folder stays empty."""
    folders = [tmp_path / "a", tmp_path / "b"]
    uri = f"sqlite:///{tmp_path}/new/all.db"
    for folder in folders:
        folder.mkdir()
        processes.append(follow(folder, uri))
    for process in processes:
        assert (*process.communicate(), process.returncode) == ("", "", 0)
    assert len(runs_at(uri)) == 8
    assert all(run.info.artifact_uri.startswith((tmp_path / "new").as_uri()) for run in runs_at(uri))


def test_usage_statistics_are_off_and_the_terminal_is_quiet(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys; from sweeps.ledger import Ledger; from sweeps.mlflow_recorder import sync;"
        "from tests.sweeps import tracked; folder = pathlib.Path(sys.argv[1]);"
        "Ledger.open(folder).append_all(tracked.toy_sweep(1)); sync(folder);"
        "from mlflow.telemetry.utils import is_telemetry_disabled; print(is_telemetry_disabled())"
    )
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}  # MLflow is silent by itself under CI or pytest
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=env, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("True\n", "")
