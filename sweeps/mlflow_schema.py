"""MLflow's SQLite schema, made once on a machine: its migrations take most of a second of processor time."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

from replora.atomic import write_atomically
from replora.folders import cache_folder
from sweeps.tracking import hold

__all__ = ["prepared"]


@contextmanager
def prepared(file: Path) -> Iterator[None]:
    """Keeps other processes from a database while MLflow opens it; a new one begins with the kept schema."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with hold(file.with_name(f"{file.name}.lock"), wait=True):
        made_here = not file.exists() and not _begin(file)
        yield
        if made_here:
            _keep(file)


def _kept() -> Path:
    return cache_folder() / f"mlflow-{version('mlflow')}.db"


def _begin(file: Path) -> bool:
    """Copies the kept schema; False where there is none, or a damaged one."""
    try:
        with closing(sqlite3.connect(f"{_kept().absolute().as_uri()}?mode=ro", uri=True)) as database:
            sound = bool(database.execute("PRAGMA quick_check").fetchone() == ("ok",))
            content = database.serialize()
    except sqlite3.Error:
        return False
    if sound:
        write_atomically(file, content)
    return sound


def _keep(file: Path) -> None:
    """Keeps what MLflow made, without its default experiment, which names this file's folder."""
    with closing(sqlite3.connect(file)) as made, closing(sqlite3.connect(":memory:")) as copy:
        made.backup(copy)
        copy.execute("DELETE FROM experiments")
        copy.commit()
        content = copy.serialize()
    with suppress(OSError):  # a cache that cannot be written costs time, nothing else
        _kept().parent.mkdir(parents=True, exist_ok=True)
        write_atomically(_kept(), content)
