"""The ledger as changes to tracking runs: what to create, add and end. Free of MLflow."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from replora.errors import LedgerError
from sweeps.ledger import LEDGER_NAME, Line

__all__ = ["Change", "Point", "Status", "Translator", "flatten", "read_from"]

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
CHUNK_BYTES = 1 << 20
REASON_CHARACTERS = 1000
# MLflow's rule for names: letters, digits, and these.
FORBIDDEN = re.compile(r"[^/\w.\- :]")


# What MLflow's page shows as the source of a run, with the commit beside it.
SOURCE = {"mlflow.source.name": "replora", "mlflow.source.type": "LOCAL"}


class Point(NamedTuple):
    """One value of a metric; `time_ms` is its ledger line's, so that to send it twice is to send it once."""

    name: str
    value: float
    time_ms: int
    step: int


@dataclass
class Change:
    """Everything that some ledger lines say of one run, in the order in which it is to be applied.

    Attributes:
        trial: Fingerprint; None means the run of the sweep itself, `<fingerprint>/final` a final run.
        parent: The trial below which the run is created; None: below the sweep.
        title: Name of the run, only where these lines create it; `start_ms` is its start then.
        config: The resolved configuration, to be kept as an artifact.
        adapter: Folder of the adapter, to be kept as an artifact.
        data: Name and hash of the data that the run reads.
        status: Of the run after these lines, None where they do not touch it.
        end_ms: Time of the end, for a status other than RUNNING.
    """

    trial: str | None
    parent: str | None = None
    title: str = ""
    start_ms: int = 0
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)
    config: dict[str, Any] | None = None
    adapter: str = ""
    data: tuple[str, str] | None = None
    status: Status | None = None
    end_ms: int = 0


class Translator:
    """Turns ledger lines, fed in order from the first, into changes.

    A metric has one point per trial and step: a trial that is resumed from a checkpoint and reports
    a step again, or repeats its last report in its result, adds nothing.

    Attributes:
        ledger: Identity of the ledger: hash of its first line, which holds the time it was begun.
    """

    def __init__(self) -> None:
        self.ledger = ""
        self._changes: dict[str | None, Change] = {}
        self._seen: dict[str, set[tuple[str, int]]] = defaultdict(set)  # name and step, of trials not over
        self._open: set[str] = set()
        self._common: dict[str, str] = {}
        self._tasks: dict[str, str] = {}
        self._data: tuple[str, str] | None = None
        self._samples = 0
        self._state: str | None = None

    def feed(self, line: Line) -> None:
        """Takes in the next line."""
        handler = _HANDLERS.get(line["event"])
        if handler is not None:
            handler(self, line, self._change(line["trial"]), round(line["time"] * 1000))

    def take(self) -> list[Change]:
        """The changes since the last call; the sweep's own comes first when it creates the run."""
        changes, self._changes = list(self._changes.values()), {}
        return changes

    def stop(self, time_ms: int) -> list[Change]:
        """Changes that leave no run open when nobody records the sweep any longer."""
        for trial in sorted(self._open):
            self._end(self._change(trial), "KILLED", time_ms, state="stopped")
        if self._state is None:
            self._end(self._change(None), "KILLED", time_ms, state="stopped")
        return self.take()

    def _change(self, trial: str | None) -> Change:
        return self._changes.setdefault(trial, Change(trial))

    def _end(self, change: Change, status: Status, time_ms: int, *, state: str) -> None:
        change.status, change.end_ms = status, time_ms
        change.tags["state"] = state

    def _add(self, change: Change, step: int, metrics: Mapping[str, float | None], time_ms: int) -> None:
        assert change.trial is not None
        seen = self._seen[change.trial]
        for key, value in metrics.items():
            name = FORBIDDEN.sub("_", key)
            if (name, step) not in seen:
                seen.add((name, step))
                change.points.append(Point(name, math.nan if value is None else float(value), time_ms, step))

    def _over(self, trial: str) -> None:
        """A trial has ended: none of its points can come again."""
        self._open.discard(trial)
        self._seen.pop(trial, None)

    def _sweep(self, line: Line, change: Change, time_ms: int) -> None:
        self.ledger = hashlib.sha256(json.dumps(line, sort_keys=True).encode()).hexdigest()[:16]
        self._common = {"sweep": line["name"], **_provenance(line)}
        change.title, change.start_ms, change.status = line["name"], time_ms, "RUNNING"
        change.params = {key: value for key, value in flatten(line.get("config", {})) if value != "null"}
        change.tags = self._common | {
            "kind": "sweep",
            "state": "running",
            "fingerprint": line["sweep"],
            "ledger": self.ledger,
            "name": line["name"],
            "metric": line["metric"],
            "direction": line["direction"],
        }

    def _resumed(self, line: Line, change: Change, time_ms: int) -> None:
        self._state = None
        change.status = "RUNNING"
        change.tags |= {"state": "running", **_provenance(line)}

    def _closed(self, line: Line, change: Change, time_ms: int) -> None:
        self._state = line["state"]
        statuses: dict[str, Status] = {"done": "FINISHED", "failed": "FAILED"}
        self._end(change, statuses.get(line["state"], "KILLED"), time_ms, state=line["state"])
        for trial in sorted(self._open):
            self._end(self._change(trial), "KILLED", time_ms, state="stopped")

    def _asked(self, line: Line, change: Change, time_ms: int) -> None:
        self._open.add(line["trial"])
        self._tasks[line["trial"]] = line["config"]["task"]["name"]
        change.title, change.start_ms, change.status = _title(line), time_ms, "RUNNING"
        change.params, change.config = dict(flatten(line["config"])), line["config"]
        change.tags = self._common | {
            "kind": "trial",
            "state": "asked",
            "fingerprint": line["trial"],
            "trial": str(line["number"]),
            "stage": line["stage"],
            **({"parent": line["parent"]} if line.get("parent") else {}),
        }

    def _started(self, line: Line, change: Change, time_ms: int) -> None:
        self._open.add(line["trial"])
        change.status = "RUNNING"
        change.tags |= {"state": "running", "host": line["host"], "attempt": str(line["attempt"])}
        if line.get("data"):
            self._data = self._tasks[line["trial"]], line["data"]
            change.data = self._change(None).data = self._data

    def _reported(self, line: Line, change: Change, time_ms: int) -> None:
        self._add(change, line["step"], line["metrics"], time_ms)

    def _finished(self, line: Line, change: Change, time_ms: int) -> None:
        self._add(change, line["step"], line["metrics"] | _objective(line), time_ms)
        self._over(line["trial"])
        change.adapter = line["adapter"] or ""
        self._end(change, "FINISHED", time_ms, state="finished")

    def _pruned(self, line: Line, change: Change, time_ms: int) -> None:
        self._add(change, line["step"], _objective(line), time_ms)
        self._over(line["trial"])
        self._end(change, "FINISHED", time_ms, state="pruned")
        change.tags["reason"] = line["reason"][:REASON_CHARACTERS]

    def _machine(self, line: Line, change: Change, time_ms: int) -> None:
        for name, value in line["values"].items():
            change.points.append(Point(f"system/{name}", float(value), time_ms, self._samples))
        self._samples += 1

    def _failed(self, line: Line, change: Change, time_ms: int) -> None:
        change.tags |= {"reason": line["reason"][:REASON_CHARACTERS], "failure": line["kind"]}
        if not line["final"]:
            change.tags["state"] = "asked"
            return
        self._over(line["trial"])
        self._end(change, "FAILED", time_ms, state="failed")

    def _final(self, line: Line, trial: Change, time_ms: int) -> None:
        """A run below that of the trial whose configuration it trained once more."""
        change = self._change(f"{line['trial']}/final")
        change.parent, change.title = line["trial"], f"final-{line['trial'].rpartition(':')[2][:8]}"
        change.start_ms = time_ms - round(line["seconds"] * 1000)
        change.params, change.config = dict(flatten(line["config"])), line["config"]
        change.data, change.adapter = self._data, line["adapter"]
        change.tags = self._common | {
            "kind": "final",
            "fingerprint": line["trial"],
            "final_of": self.ledger,
            "folder": line["folder"],
            **_provenance(line),
        }
        self._add(change, line["step"], line["metrics"], time_ms)
        self._end(change, "FINISHED", time_ms, state="finished")


_HANDLERS = {
    "sweep": Translator._sweep,
    "resumed": Translator._resumed,
    "closed": Translator._closed,
    "asked": Translator._asked,
    "started": Translator._started,
    "reported": Translator._reported,
    "finished": Translator._finished,
    "pruned": Translator._pruned,
    "failed": Translator._failed,
    "machine": Translator._machine,
    "final": Translator._final,
}


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys of a configuration, with values as YAML has them: `true`, `null`, `["query", "value"]`."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value if isinstance(value, str) else json.dumps(value)


def read_from(folder: Path, offset: int) -> list[tuple[Line, int]]:
    """The next complete lines of a ledger, about a mebibyte at most, each with the byte offset of its end.

    Raises:
        LedgerError: If a complete line is not JSON.
    """
    path = folder / LEDGER_NAME
    lines = []
    with path.open("rb") as file:
        file.seek(offset)
        for raw in file.readlines(CHUNK_BYTES):
            if not raw.endswith(b"\n"):
                break  # still being written
            try:
                line = json.loads(raw)
            except ValueError as error:
                raise LedgerError(f"{path}: the line at byte {offset} is damaged ({error})") from error
            offset += len(raw)
            lines.append((line, offset))
    return lines


def _objective(line: Line) -> dict[str, float]:
    return {} if line["objective"] is None else {"objective": line["objective"]}


def _title(line: Line) -> str:
    return f"{line['stage']}-{line['number']:04d}-{line['trial'].rpartition(':')[2][:8]}"


def _provenance(line: Line) -> dict[str, str]:
    tags = {f"version.{name}": str(version) for name, version in line["versions"].items()}
    tags |= SOURCE
    if line.get("git"):
        tags |= {"git": line["git"], "mlflow.source.git.commit": line["git"]}
    return tags
