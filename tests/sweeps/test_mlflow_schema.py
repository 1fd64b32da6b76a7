"""A new MLflow file begins with the schema that an earlier one was given."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from sweeps.mlflow_schema import prepared


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REPLORA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make(file: Path) -> None:
    """What MLflow does to a new file: a schema, its version and a default experiment."""
    with prepared(file), closing(sqlite3.connect(file)) as database:
        database.execute("CREATE TABLE experiments (name)")
        database.execute("CREATE TABLE alembic_version (version)")
        database.execute("INSERT INTO experiments VALUES ('Default')")
        database.execute("INSERT INTO alembic_version VALUES ('7')")
        database.commit()


def read(file: Path, table: str) -> list[tuple[str]]:
    with closing(sqlite3.connect(file)) as database:
        return database.execute(f"SELECT * FROM {table}").fetchall()


def test_a_second_file_begins_with_the_schema_and_without_the_first_ones_experiment(tmp_path: Path) -> None:
    make(tmp_path / "first" / "mlflow.db")
    with prepared(tmp_path / "second" / "mlflow.db"):
        assert read(tmp_path / "second" / "mlflow.db", "alembic_version") == [("7",)]
        assert read(tmp_path / "second" / "mlflow.db", "experiments") == []
    assert read(tmp_path / "first" / "mlflow.db", "experiments") == [("Default",)]


def test_a_file_that_exists_is_left_as_it_is(tmp_path: Path) -> None:
    make(tmp_path / "first.db")
    (tmp_path / "second.db").write_bytes(b"")
    with prepared(tmp_path / "second.db"):
        assert (tmp_path / "second.db").read_bytes() == b""


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\0 and then nothing"], ids=["empty", "damaged"])
def test_a_damaged_schema_is_made_again(content: bytes, tmp_path: Path, cache: Path) -> None:
    make(tmp_path / "first.db")
    (kept,) = cache.iterdir()
    good = kept.read_bytes()
    kept.write_bytes(content)
    make(tmp_path / "second.db")
    assert kept.read_bytes() == good
