"""The MLflow side of a recorder: one client, and what a ledger's changes become there.

The only file that imports mlflow, inside functions, because the import takes a second. What MLflow does by
default and this file prevents (each has a test): processes that create one schema at the same time break each
other, and leave the file unusable; the SQLite path depends on the working folder; usage statistics are sent
out; a call to a lost server blocks for minutes; log lines and run links go to the terminal.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import yaml

from replora.errors import TrackingError
from sweeps.delivery import LostError, RefusedError
from sweeps.mlflow_schema import prepared
from sweeps.spool import Change
from sweeps.tracking import Delivered, artifact_root, reason, resolve_uri, sqlite_file

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run, RunInfo
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

__all__ = ["MlflowSession", "find_experiment", "open_client", "set_up"]

# MLflow's own limits for one call of log_batch.
BATCH_ITEMS, BATCH_PARAMS = 1000, 100
PAGE_RUNS = 1000
# The same text as the slow one's; a PyYAML that was built without libyaml has only that.
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
MLFLOW_PARENT = "mlflow.parentRunId"
# A user's own settings win. Retries are left to us: MLflow's would block one call for minutes.
SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


class MlflowSession:
    """delivery.Session over MlflowClient, which keeps no state of its own between threads or runs."""

    def __init__(self, folder: Path, state: Delivered) -> None:
        self._folder, self._state = folder, state
        self._uri = resolve_uri(folder, state.uri)
        self._client = open_client(self._uri)
        self._experiment = self._open_experiment()
        self._status: dict[str, str] = {}
        self._places: dict[str, str] = {}  # of a run's artifacts
        self._look_up()

    def log(self, change: Change) -> None:
        """Adds a change's points, parameters, tags and data to its run, which is made where it is missing."""
        from mlflow.entities import Metric, Param, RunTag

        tags = [] if self._create(change) else [RunTag(*tag) for tag in change.tags.items()]
        params = [Param(*param) for param in change.params.items()]
        points = [Metric(point.name, point.value, point.time_ms, point.step) for point in change.points]
        run = self._run(change)
        with _refusals():
            while params or points or tags:  # one call holds all of most trials
                room = BATCH_ITEMS - len(params[:BATCH_PARAMS]) - len(tags)
                self._client.log_batch(run, points[:room], params[:BATCH_PARAMS], tags)
                params, points, tags = params[BATCH_PARAMS:], points[room:], []
            if change.data is not None:
                self._log_data(run, *change.data)

    def keep(self, change: Change) -> None:
        """Stores a change's configuration and adapter as artifacts of its run."""
        run = self._run(change)
        if change.config is not None:
            with TemporaryDirectory() as folder:
                config = Path(folder, "config.yaml")
                config.write_text(yaml.dump(change.config, Dumper=_DUMPER, sort_keys=False), encoding="utf-8")
                self._keep(lambda: self._artifacts(run).log_artifact(str(config)))
        if change.adapter:
            path = self._folder / change.adapter
            if not path.is_dir():
                raise RefusedError(f"the adapter's folder {path} is missing")
            self._keep(lambda: self._artifacts(run).log_artifacts(str(path), "adapter"))

    def keep_file(self, path: Path) -> None:
        """Stores a file as an artifact of the sweep's run."""
        self._keep(lambda: self._artifacts(self._state.run).log_artifact(str(path)))

    def _artifacts(self, run: str) -> ArtifactRepository:
        """The store of a run's artifacts; MLflow's client would first load the whole run to find it."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        return get_artifact_repository(self._places[run], tracking_uri=self._uri)

    def end(self, change: Change) -> None:
        """Gives a run the state that a change brings it to."""
        run = self._run(change)
        if change.status is None or self._status[run] == change.status:
            return
        if change.status == "RUNNING":
            self._client.update_run(run, status="RUNNING")
        else:
            self._client.set_terminated(run, change.status, change.end_ms)
        self._status[run] = change.status

    def _run(self, change: Change) -> str:
        state = self._state
        run = state.run if change.trial is None else state.trials.get(change.trial, "")
        if run not in self._status:
            raise LostError
        return run

    def _create(self, change: Change) -> bool:
        """Makes the change's run unless the server has it; True if it was made."""
        state = self._state
        known = state.run if change.trial is None else state.trials.get(change.trial)
        if not change.title or known in self._status:
            return False
        parent = state.run if change.parent is None else state.trials.get(change.parent, state.run)
        tags = change.tags | ({} if change.trial is None else {MLFLOW_PARENT: parent})
        made = self._client.create_run(
            self._experiment, start_time=change.start_ms, tags=tags, run_name=change.title
        )
        run = self._note(made.info)
        if change.trial is None:
            state.run = run
        else:
            state.trials[change.trial] = run
        return True

    def _log_data(self, run: str, name: str, digest: str) -> None:
        """Names the data of a run; MLflow knows the same data of many runs as one data set."""
        from mlflow.entities import Dataset, DatasetInput

        data = Dataset(name, digest.removeprefix("sha256:"), source_type="replora", source=digest)
        self._client.log_inputs(run, [DatasetInput(data, [])])

    def _keep(self, store: Callable[[], None]) -> None:
        """Stores artifacts; a store that fails while the server is well must not hold up the points."""
        try:
            store()
        except Exception as error:
            self._client.get_experiment(self._experiment)  # raises when the server is away: try again later
            raise RefusedError(reason(error)) from error

    def _look_up(self) -> None:
        """Finds the runs that the server has of this ledger, whoever created them."""
        state = self._state
        found = [self._note(run.info) for run in self._search(f"tags.ledger = '{state.ledger}'")]
        state.run, state.trials = found[0] if found else "", {}
        if not found:
            return
        for run in self._search(f"tags.`{MLFLOW_PARENT}` = '{state.run}'"):
            state.trials[run.data.tags["fingerprint"]] = self._note(run.info)
        for run in self._search(f"tags.final_of = '{state.ledger}'"):
            state.trials[f"{run.data.tags['fingerprint']}/final"] = self._note(run.info)

    def _note(self, info: RunInfo) -> str:
        """The id of a run that the server has."""
        self._status[info.run_id], self._places[info.run_id] = info.status, info.artifact_uri
        return str(info.run_id)

    def _search(self, text: str) -> Iterator[Run]:
        """Runs with all their parameters and tags, a page in memory at a time."""
        token = None
        while True:
            page = self._client.search_runs([self._experiment], text, max_results=PAGE_RUNS, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def _open_experiment(self) -> str:
        """The id of the experiment, created where needed, by one process at a time."""
        from mlflow.exceptions import MlflowException

        name = self._state.experiment
        found = find_experiment(self._client, name)
        if found is not None:
            return found
        try:
            return self._client.create_experiment(name, artifact_root(self._folder, self._uri))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return find_experiment(self._client, name) or ""


def set_up() -> None:
    """Imports MLflow with this project's settings; the import reads some of them."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    importlib.import_module("mlflow")


def open_client(uri: str) -> MlflowClient:
    """A client of a tracking URI; the first one of a new SQLite file creates its schema, and others wait."""
    set_up()
    from mlflow import MlflowClient

    file = sqlite_file(uri)
    if file is None:
        return MlflowClient(tracking_uri=uri)
    with prepared(file):
        return MlflowClient(tracking_uri=uri)


def find_experiment(client: MlflowClient, name: str) -> str | None:
    """The id of an experiment, None where there is none of this name.

    Raises:
        TrackingError: If it was deleted, for MLflow keeps the names of deleted experiments taken.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        return None
    if found.lifecycle_stage == "deleted":
        raise TrackingError(f"its experiment {name!r} is deleted; restore it or set tracking.experiment")
    return str(found.experiment_id)


@contextmanager
def _refusals() -> Iterator[None]:
    """Tells what can never succeed, and lost runs, from what only needs another try."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise LostError from error
        if error.error_code in ("INVALID_PARAMETER_VALUE", "INVALID_STATE"):
            raise RefusedError(reason(error)) from error
        raise
