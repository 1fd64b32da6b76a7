"""A ledger with any damage: a clean error and no changed file, or a sweep that ends as if undamaged."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replora.errors import LedgerError, ReploraError
from sweeps.director import Director
from sweeps.ledger import LEDGER_NAME, Ledger, SweepView, read_ledger, read_lines
from sweeps.lines import encode
from tests.sweeps.simulated import SimulatedHost, run, sweep

CONFIG = sweep(search={"name": "random", "trials": 4}, confirm={"top": 1, "seeds": (1, 2)})
OFTEN = settings(
    deadline=None, max_examples=250, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)
JSON = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.floats(allow_nan=False), st.text(max_size=3),
    st.just([]), st.just({}), st.just({"a": {"b": 1}}),
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def unflushed() -> Iterator[None]:
    """Hundreds of sweeps; test_ledger.py looks at flushing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run(folder, CONFIG, SimulatedHost(1))
    return folder


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged")


def outcomes(view: SweepView) -> list[tuple[Any, ...]]:
    return [(t.number, t.stage, t.state, t.point, t.objective) for t in view.trials.values()]


def contents(folder: Path) -> dict[str, str]:
    """Hash of every file but the lock, which says who looked last."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@OFTEN
@given(data=st.data())
def test_damaged_bytes_are_refused_untouched_or_the_sweep_ends_the_same(
    whole: Path, scratch: Path, data: st.DataObject
) -> None:
    content = (whole / LEDGER_NAME).read_bytes()
    at = data.draw(st.integers(0, len(content) - 1))
    damage = data.draw(st.sampled_from(["cut", "flip", "insert", "remove", "repeat"]))
    more = data.draw(st.binary(min_size=1, max_size=9))
    length = data.draw(st.integers(1, 400))
    damaged = {
        "cut": content[:at],
        "flip": content[:at] + bytes([content[at] ^ (more[0] or 1)]) + content[at + 1 :],
        "insert": content[:at] + more + content[at:],
        "remove": content[:at] + content[at + length :],
        "repeat": content[:at] + content[max(0, at - length) : at] + content[at:],
    }[damage]
    (scratch / LEDGER_NAME).write_bytes(damaged)
    before = contents(scratch)
    try:
        view = run(scratch, CONFIG, SimulatedHost(1)).view
    except LedgerError:
        assert contents(scratch) == before
    else:
        assert outcomes(view) == outcomes(read_ledger(whole))


@OFTEN
@given(data=st.data())
def test_lines_of_another_form_are_named_or_understood(
    whole: Path, scratch: Path, data: st.DataObject
) -> None:
    """Checksums fit here: a line that another version wrote, or a hand."""
    lines = list(read_lines(whole))
    line = lines[data.draw(st.integers(0, len(lines) - 1))]
    field = data.draw(st.sampled_from(sorted(line.keys() - {"seq", "crc"})))
    line.pop("crc", None)
    if data.draw(st.booleans()):
        del line[field]
    else:
        line[field] = data.draw(JSON)
    for each in lines:
        each.pop("crc", None)
    (scratch / LEDGER_NAME).write_bytes(b"".join(encode(each) for each in lines))
    before = contents(scratch)
    try:
        read_ledger(scratch)
        with Ledger.open(scratch) as ledger:
            Director(CONFIG, ledger)
    except ReploraError:
        assert contents(scratch) == before
