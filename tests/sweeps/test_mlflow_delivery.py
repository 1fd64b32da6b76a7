"""The ledger's way into a tracking server, without MLflow."""

from __future__ import annotations

import json
import math
import tempfile
from collections import Counter
from collections.abc import Collection
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replora.errors import LedgerError, TrackingError
from sweeps.delivery import Delivery, LostError, RefusedError, count_points
from sweeps.ledger import LEDGER_NAME, Entry, Ledger, Line
from sweeps.spool import Change, Translator, flatten, read_from
from sweeps.tracking import STATE_NAME, Delivered, hold
from tests.sweeps import tracked


def changes_of(*entries: Entry) -> dict[str | None, Change]:
    translator = Translator()
    for line in lines_of(tracked.FIRST, *entries):
        translator.feed(line)
    return {change.trial: change for change in translator.take()}


def lines_of(*entries: Entry) -> list[Line]:
    return [
        {**entry.fields, "seq": seq, "time": 1000.0 + seq, "event": entry.event, "trial": entry.trial}
        for seq, entry in enumerate(entries)
    ]


NAME = f"{0:016x}"


def test_a_step_reported_again_adds_no_point() -> None:
    once = changes_of(*tracked.trial(0, steps=3, end=""))[NAME].points
    again = changes_of(*tracked.trial(0, steps=3, end=""), *(tracked.report(0, step) for step in (2, 3)))
    assert again[NAME].points == once


def test_a_result_that_repeats_the_last_report_adds_only_the_objective() -> None:
    points = changes_of(*tracked.trial(0, steps=3, metrics=2))[NAME].points
    assert [point.name for point in points].count("objective") == 1
    assert len(points) == 3 * 2 + 1


def test_a_result_of_null_is_not_a_number() -> None:
    entry = Entry("reported", NAME, {"step": 1, "metrics": {"val_loss": None}})
    (point,) = changes_of(*tracked.trial(0, steps=0, end=""), entry)[NAME].points
    assert math.isnan(point.value)


def test_a_metric_name_that_mlflow_forbids_is_mended() -> None:
    entry = Entry("reported", NAME, {"step": 1, "metrics": {"acc@1": 0.5}})
    (point,) = changes_of(*tracked.trial(0, steps=0, end=""), entry)[NAME].points
    assert point.name == "acc_1"


@pytest.mark.parametrize(
    ("end", "status", "state"),
    [
        ("finished", "FINISHED", "finished"),
        ("pruned", "FINISHED", "pruned"),
        ("failed", "FAILED", "failed"),
        ("", "RUNNING", "running"),
    ],
)
def test_the_end_of_a_trial_sets_status_and_state(end: str, status: str, state: str) -> None:
    change = changes_of(*tracked.trial(0, end=end))[NAME]
    assert (change.status, change.tags["state"]) == (status, state)


def test_a_trial_that_will_be_started_again_has_not_ended() -> None:
    failed = Entry("failed", NAME, {"step": 1, "kind": "lost", "reason": "host died", "final": False})
    change = changes_of(*tracked.trial(0, end=""), failed)[NAME]
    assert (change.status, change.tags["state"], change.tags["reason"]) == ("RUNNING", "asked", "host died")


@pytest.mark.parametrize(("state", "status"), [("done", "FINISHED"), ("failed", "FAILED")])
def test_a_closed_sweep_leaves_no_run_open(state: str, status: str) -> None:
    changes = changes_of(*tracked.trial(0, end=""), Entry("closed", None, {"state": state}))
    assert (changes[None].status, changes[NAME].status) == (status, "KILLED")


def test_a_sweep_nobody_records_any_longer_is_killed_until_it_resumes() -> None:
    translator = Translator()
    for line in lines_of(tracked.FIRST, *tracked.trial(0), *tracked.trial(1, end="")):
        translator.feed(line)
    translator.take()
    assert {change.trial: change.status for change in translator.stop(1)} == {
        None: "KILLED",
        f"{1:016x}": "KILLED",
    }
    (resumed,) = lines_of(Entry("resumed", None, {"versions": {"torch": "3"}, "accepted": []}))
    translator.feed(resumed)
    (change,) = translator.take()
    assert (change.status, change.tags["version.torch"]) == ("RUNNING", "3")


def test_parameters_read_as_in_yaml() -> None:
    config = {"a": {"b": True, "c": None, "d": ["x", "y"]}, "e": "text", "f": 1e-3, "g": {}}
    assert dict(flatten(config)) == {
        "a.b": "true", "a.c": "null", "a.d": '["x", "y"]', "e": "text", "f": "0.001", "g": "{}"
    }  # fmt: skip


def test_a_line_still_being_written_is_left_for_later(tmp_path: Path) -> None:
    with Ledger.open(tmp_path) as ledger:
        ledger.append_all(tracked.toy_sweep(1))
    path = tmp_path / LEDGER_NAME
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    lines = read_from(tmp_path, 0)
    path.write_bytes(whole)
    rest = read_from(tmp_path, lines[-1][1])
    assert [line["event"] for line, _ in rest] == ["closed"]


def test_a_damaged_line_names_its_place(tmp_path: Path) -> None:
    (tmp_path / LEDGER_NAME).write_bytes(b"{}\nnonsense\n")
    with pytest.raises(LedgerError, match="byte 3"):
        read_from(tmp_path, 0)


class FakeServer:
    """Keeps runs and points as MLflow does; calls fail where told, before or after they had an effect."""

    def __init__(self, failures: Collection[int] = (), forget: int = 0) -> None:
        self.runs: list[str | None] = []
        self.rows: dict[int, set[tuple[object, ...]]] = {}
        self.status: dict[int, str] = {}
        self.calls = self.points = 0
        self.failures, self.forget = failures, forget

    def connect(self, state: Delivered) -> FakeSession:
        self.call()
        return FakeSession(self, state)

    def call(self) -> None:
        self.calls += 1
        if self.calls == self.forget:  # which takes a restart of the server, so the call fails as well
            self.runs, self.rows, self.status = [], {}, {}
        if self.calls == self.forget or self.calls in self.failures:
            raise ConnectionError


class FakeSession:
    """Looks up the server's runs once, as the real session does."""

    def __init__(self, server: FakeServer, state: Delivered) -> None:
        self.server, self.state = server, state
        self.known = {trial: run for run, trial in enumerate(server.runs)}
        state.run = str(self.known.get(None, ""))

    def log(self, change: Change) -> None:
        self.server.call()
        if change.title and change.trial not in self.known:
            self.create(change)
        rows = self.server.rows[self.run(change)]
        for point in change.points:
            self.server.points += 1
            rows.add((change.trial, point.name, point.step, point.time_ms, point.value))
            self.server.call()

    def create(self, change: Change) -> None:
        run = len(self.server.runs)
        self.server.runs.append(change.trial)
        self.server.rows[run], self.server.status[run] = set(), "RUNNING"
        self.server.call()
        self.known[change.trial] = run
        if change.trial is None:
            self.state.run = str(run)

    def run(self, change: Change) -> int:
        run = self.known.get(change.trial, -1)
        if run not in self.server.rows:
            raise LostError
        return run

    def keep(self, change: Change) -> None:
        if change.tags.get("trial") == "13":
            raise RefusedError("no room")

    def end(self, change: Change) -> None:
        self.server.call()
        if change.status:
            self.server.status[self.run(change)] = change.status

    def keep_file(self, path: Path) -> None: ...


def rows_of(server: FakeServer) -> Counter[tuple[object, ...]]:
    return Counter(row for rows in server.rows.values() for row in rows)


def deliver_all(folder: Path, server: FakeServer, crashes: Collection[int] = ()) -> Delivery:
    """What the recorder's thread does, without its pauses; at a crash a new process takes over."""
    delivery = delivery_of(folder, server)
    while not delivery.done:
        try:
            if not delivery.advance():
                delivery.finish()
        except ConnectionError:
            if server.calls in crashes:
                delivery = delivery_of(folder, server)
    return delivery


def delivery_of(folder: Path, server: FakeServer) -> Delivery:
    return Delivery(folder, Delivered.load(folder) or Delivered("fake:", "toy"), server.connect)


SWEEP = list(tracked.toy_sweep(4))


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(
    cuts=st.lists(st.integers(0, len(SWEEP)), max_size=5),
    failures=st.sets(st.integers(1, 150), max_size=40),
    crashes=st.sets(st.integers(1, 150), max_size=40),
    forget=st.integers(0, 150),
)
def test_every_point_arrives_once_whatever_fails(
    cuts: list[int], failures: set[int], crashes: set[int], forget: int
) -> None:
    """Calls fail, processes die, the server loses everything once, and the ledger grows in pieces."""
    server = FakeServer(failures | crashes, forget)
    with tempfile.TemporaryDirectory() as name, Ledger.open(Path(name)) as ledger:
        for start, end in pairwise([0, *sorted(cuts), len(SWEEP)]):
            ledger.append_all(SWEEP[start:end])
            deliver_all(Path(name), server, crashes)
        assert rows_of(server) == tracked.rows_due(Path(name))
    assert set(server.status.values()) == {"FINISHED"}
    assert len(server.runs) == 5


def test_a_ledger_that_took_a_line_back_is_delivered_anew(tmp_path: Path) -> None:
    server = FakeServer()
    delivery = delivery_of(tmp_path, server)
    with Ledger.open(tmp_path) as ledger:
        ledger.append_all([tracked.FIRST, *tracked.trial(0, end="")])
    short = (tmp_path / LEDGER_NAME).read_bytes()
    with Ledger.open(tmp_path) as ledger:
        ledger.append_all([tracked.report(0, 99)])
    assert delivery.advance()
    (tmp_path / LEDGER_NAME).write_bytes(short)
    assert delivery.advance()
    with Ledger.open(tmp_path) as ledger:
        ledger.append_all([tracked.report(0, 4)])
    assert delivery.advance()
    assert tracked.rows_due(tmp_path) <= rows_of(server)


def test_what_was_delivered_is_not_sent_again(tmp_path: Path) -> None:
    server = FakeServer()
    with Ledger.open(tmp_path) as ledger:
        ledger.append_all([tracked.FIRST, *tracked.trial(0, end="")])
        deliver_all(tmp_path, server)
        before = server.points
        ledger.append_all([tracked.report(0, 4, metrics=7)])
        deliver_all(tmp_path, server)
    assert server.points - before == 7


def test_another_ledger_in_the_folder_starts_from_nothing(tmp_path: Path) -> None:
    for trials in (2, 1):
        server = FakeServer()
        (tmp_path / LEDGER_NAME).unlink(missing_ok=True)
        with Ledger.open(tmp_path) as ledger:
            ledger.append_all(tracked.toy_sweep(trials))
        deliver_all(tmp_path, server)
        assert rows_of(server) == tracked.rows_due(tmp_path)


def test_what_is_refused_does_not_hold_up_the_rest(tmp_path: Path) -> None:
    server = FakeServer()
    with Ledger.open(tmp_path) as ledger:
        ledger.append_all(tracked.toy_sweep(15))
    delivery = deliver_all(tmp_path, server)
    assert delivery.refused == [f"artifacts of trial {13:016x}: no room"]
    assert rows_of(server) == tracked.rows_due(tmp_path)


def test_points_are_counted_from_an_offset(tmp_path: Path) -> None:
    with Ledger.open(tmp_path) as ledger:
        ledger.append_all([tracked.FIRST, *tracked.trial(0, end="")])
        middle = (tmp_path / LEDGER_NAME).stat().st_size
        ledger.append_all([tracked.report(0, 4, metrics=7)])
    assert count_points(tmp_path, middle) == 7
    assert count_points(tmp_path) == sum(tracked.rows_due(tmp_path).values())


def test_a_damaged_record_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / STATE_NAME).write_text('{"uri": "sqlite:////x"')
    with pytest.raises(TrackingError, match=r"Delete it, .*replora sync"):
        Delivered.load(tmp_path)


def test_the_record_is_as_long_for_any_number_of_trials(tmp_path: Path) -> None:
    state = Delivered(None, "toy", "ledger", "run", 7, {"f": "1"})
    state.save(tmp_path)
    assert Delivered.load(tmp_path) == replace(state, trials={})
    (tmp_path / STATE_NAME).write_text(json.dumps(asdict(state)))  # as earlier versions wrote it
    assert Delivered.load(tmp_path) == replace(state, trials={})


def test_a_held_folder_is_refused_at_once(tmp_path: Path) -> None:
    with (
        hold(tmp_path / "lock", wait=False),
        pytest.raises(TrackingError, match="being recorded by another process"),
        hold(tmp_path / "lock", wait=False),
    ):
        pass
