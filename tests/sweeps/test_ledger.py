from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from replora.errors import LedgerError
from sweeps import lines as lines_module
from sweeps.ledger import LEDGER_NAME, Entry, Ledger, read_ledger, read_lines

HEADER: dict[str, Any] = {
    "sweep": "f00d", "name": "toy", "versions": {"torch": "1"}, "git": "abc",
    "metric": "accuracy", "direction": "maximize", "config": {},
}  # fmt: skip


def asked(number: int) -> Entry:
    fields = {"number": number, "stage": "search", "config": {}, "point": {}, "seed": 0, "proposal": number}
    return Entry("asked", f"t{number}", fields)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path) as opened:
        opened.append("sweep", **HEADER)
        opened.append_all([asked(0), asked(1)])
        yield opened


def raw(folder: Path) -> bytes:
    return (folder / LEDGER_NAME).read_bytes()


def test_a_line_carries_the_crc_of_its_canonical_json(ledger: Ledger, tmp_path: Path) -> None:
    for text in raw(tmp_path).splitlines():
        line = json.loads(text)
        crc = line.pop("crc")
        canonical = json.dumps(line, sort_keys=True, separators=(",", ":")).encode()
        assert crc == f"{zlib.crc32(canonical):08x}"


def test_lines_are_numbered_from_zero(ledger: Ledger) -> None:
    assert [line["seq"] for line in ledger.lines()] == [0, 1, 2]


def test_a_line_is_on_disk_before_append_returns(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bytes] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        real(handle)
        synced.append(raw(ledger.path.parent))

    monkeypatch.setattr(os, "fsync", fsync)
    ledger.append("closed", state="done")
    assert len(synced) == 1
    assert b'"closed"' in synced[0]


def test_a_batch_is_flushed_once(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(os, "fsync", calls.append)
    ledger.append_all([asked(number) for number in range(2, 50)])
    assert len(calls) == 1


@pytest.mark.parametrize("keep", [1, 20, -1])
def test_a_torn_last_line_never_counted(tmp_path: Path, keep: int) -> None:
    with Ledger.open(tmp_path) as ledger:
        ledger.append("sweep", **HEADER)
        ledger.append_all([asked(0)])
    whole = raw(tmp_path)
    head, last = whole[: whole.index(b"\n") + 1], whole[whole.index(b"\n") + 1 :]
    (tmp_path / LEDGER_NAME).write_bytes(head + last[:keep])
    assert [line["event"] for line in read_lines(tmp_path)] == ["sweep"]


def test_reopening_cuts_a_torn_line_off_and_goes_on(tmp_path: Path) -> None:
    with Ledger.open(tmp_path) as ledger:
        ledger.append("sweep", **HEADER)
    with (tmp_path / LEDGER_NAME).open("ab") as file:
        file.write(b'{"crc":"123')
    with Ledger.open(tmp_path) as ledger:
        ledger.append("closed", state="done")
    assert [line["event"] for line in read_lines(tmp_path)] == ["sweep", "closed"]


def test_a_damaged_line_in_the_middle_is_an_error_that_names_it(ledger: Ledger, tmp_path: Path) -> None:
    text = raw(tmp_path).replace(b'"trial":"t0"', b'"trial":"t9"')
    (tmp_path / LEDGER_NAME).write_bytes(text)
    with pytest.raises(LedgerError, match=r"line 2 is damaged(.|\n)*head -n 1 "):
        read_ledger(tmp_path)


def test_the_remedy_for_a_damaged_line_works_as_written(ledger: Ledger, tmp_path: Path) -> None:
    ledger.close()
    (tmp_path / LEDGER_NAME).write_bytes(raw(tmp_path).replace(b'"trial":"t0"', b'"trial":"t9"'))
    with pytest.raises(LedgerError) as caught:
        read_ledger(tmp_path)
    subprocess.run(["bash", "-c", str(caught.value).splitlines()[-1]], check=True)
    assert read_ledger(tmp_path).size == 1


def test_a_removed_line_is_noticed(ledger: Ledger, tmp_path: Path) -> None:
    lines = raw(tmp_path).splitlines(keepends=True)
    (tmp_path / LEDGER_NAME).write_bytes(lines[0] + lines[2] + lines[2])
    with pytest.raises(LedgerError, match="line 2 is damaged"):
        read_ledger(tmp_path)


def test_a_second_driver_is_refused_and_told_who_holds_the_folder(ledger: Ledger, tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match=rf"another process drives this sweep \(process {os.getpid()} on "):
        Ledger.open(tmp_path)


def test_another_process_is_refused(ledger: Ledger, tmp_path: Path) -> None:
    code = f"from pathlib import Path; from sweeps.ledger import Ledger; Ledger.open(Path({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "another process drives this sweep" in done.stderr


def test_a_closed_ledger_gives_the_folder_back(tmp_path: Path) -> None:
    Ledger.open(tmp_path).close()
    with Ledger.open(tmp_path) as again:
        assert again.size == 0


def test_readers_need_no_lock(ledger: Ledger, tmp_path: Path) -> None:
    assert len(read_ledger(tmp_path).trials) == 2


class FullDisk:
    """A file that takes `room` bytes and then says that the disk is full."""

    def __init__(self, file: Any, room: int) -> None:
        self._file, self._room = file, room

    def write(self, data: Any) -> int:
        if not self._room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken: int = self._file.write(data[: self._room])
        self._room -= taken
        return taken

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def test_a_full_disk_leaves_the_ledger_as_it_was(ledger: Ledger, tmp_path: Path) -> None:
    before, file = raw(tmp_path), ledger._file
    ledger._file = FullDisk(file, room=30)  # type: ignore[assignment]
    with pytest.raises(LedgerError, match=r"line 4 could not be written .No space left on device"):
        ledger.append("closed", state="done")
    assert raw(tmp_path) == before


def test_a_ledger_can_be_written_again_when_there_is_space(ledger: Ledger, tmp_path: Path) -> None:
    file = ledger._file
    ledger._file = FullDisk(file, room=30)  # type: ignore[assignment]
    with pytest.raises(LedgerError):
        ledger.append("closed", state="done")
    ledger._file = file
    ledger.append("closed", state="done")
    assert read_ledger(tmp_path).closed == "done"


def test_numbers_that_json_lacks_come_back_as_nan(ledger: Ledger, tmp_path: Path) -> None:
    metrics = {"loss": math.nan, "norm": math.inf, "accuracy": 0.1 + 0.2}
    ledger.append("reported", "t0", step=5, metrics=metrics)
    found = read_ledger(tmp_path).trials["t0"].metrics
    assert math.isnan(found["loss"])
    assert math.isnan(found["norm"])
    assert found["accuracy"] == 0.1 + 0.2


def test_a_folder_without_a_ledger_is_no_sweep(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="not a sweep's folder"):
        read_ledger(tmp_path)


def test_an_empty_ledger_is_no_sweep(tmp_path: Path) -> None:
    Ledger.open(tmp_path).close()
    with pytest.raises(LedgerError, match="no line was completed"):
        read_ledger(tmp_path)


def test_reading_can_go_on_where_it_stopped(ledger: Ledger, tmp_path: Path) -> None:
    assert [line["trial"] for line in read_lines(tmp_path, offset=2)] == ["t1"]


def test_a_view_follows_a_trial_through_its_states(ledger: Ledger, tmp_path: Path) -> None:
    states = []
    for event, fields in (
        ("started", {"host": "h", "attempt": 1}),
        ("failed", {"step": 1, "kind": "lost", "reason": "gone", "final": False}),
        ("started", {"host": "h", "attempt": 2}),
        ("reported", {"step": 50, "metrics": {"accuracy": 0.5}}),
        ("finished", {"step": 100, "metrics": {}, "objective": 0.7, "adapter": "a", "seconds": 1.0}),
    ):
        ledger.append(event, "t0", **fields)
        states.append(read_ledger(tmp_path).trials["t0"].state)
    assert states == ["running", "asked", "running", "running", "finished"]


def test_a_finished_trial_shows_no_earlier_failure(ledger: Ledger, tmp_path: Path) -> None:
    ledger.append("failed", "t0", step=1, kind="lost", reason="gone", final=False)
    ledger.append("finished", "t0", step=9, metrics={}, objective=0.7, adapter="a", seconds=1.0)
    trial = read_ledger(tmp_path).trials["t0"]
    assert (trial.reason, trial.kind, trial.objective) == ("", "", 0.7)


def test_ten_thousand_trials_are_read_one_line_at_a_time(tmp_path: Path) -> None:
    with Ledger.open(tmp_path) as ledger:
        ledger.append("sweep", **HEADER)
        ledger.append_all(asked(number) for number in range(10_000))
    lines = read_lines(tmp_path)
    assert next(lines)["event"] == "sweep"  # nothing was collected first
    assert len(read_ledger(tmp_path).trials) == 10_000


def test_a_reader_beside_a_writer_sees_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Ledger.open(tmp_path) as ledger:
        ledger.append("sweep", **HEADER)
        ledger.append("closed", state="done")
    whole = raw(tmp_path)
    (tmp_path / LEDGER_NAME).write_bytes(whole[:-20])  # the writer is in the middle of its second line

    def decode_while_the_writer_goes_on(text: bytes, seq: int) -> Any:
        if seq == 1:
            (tmp_path / LEDGER_NAME).write_bytes(whole)
        return real(text, seq)

    real = lines_module._decode
    monkeypatch.setattr(lines_module, "_decode", decode_while_the_writer_goes_on)
    assert [line["event"] for line in read_lines(tmp_path)] == ["sweep"]


def test_the_remedy_survives_a_path_with_spaces(tmp_path: Path) -> None:
    folder = tmp_path / "my sweep"
    with Ledger.open(folder) as ledger:
        ledger.append("sweep", **HEADER)
        ledger.append_all([asked(0), asked(1)])
    (folder / LEDGER_NAME).write_bytes(raw(folder).replace(b'"trial":"t0"', b'"trial":"t9"'))
    with pytest.raises(LedgerError) as caught:
        read_ledger(folder)
    subprocess.run(["bash", "-c", str(caught.value).splitlines()[-1]], check=True)
    assert read_ledger(folder).size == 1
