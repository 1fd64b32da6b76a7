"""Where a sweep is tracked, and how far its ledger has been delivered. Free of MLflow."""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from replora.errors import TrackingError

__all__ = [
    "DEFAULT_EXPERIMENT",
    "STATE_NAME",
    "Delivered",
    "artifact_root",
    "check_writable",
    "hold",
    "knock",
    "reason",
    "resolve_uri",
    "sqlite_file",
]

DEFAULT_EXPERIMENT = "replora"
STATE_NAME = "mlflow.json"
REASON_CHARACTERS = 300
SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql")
# How MLflow's client tells that a server did not let it in (known: 3.17.2).
_REFUSED = re.compile(r"failed with error code (401|403)\b")
SECRETS = {"password", "passwd", "pwd", "token", "sslpassword"}


def resolve_uri(folder: Path, uri: str | None) -> str:
    """The tracking URI in its absolute form; null means SQLite in the sweep's folder.

    MLflow's own default depends on the working folder, which a trial may change, so a relative
    SQLite path is made absolute here, once.

    Args:
        folder: The sweep's folder.
        uri: What the user gave.

    Raises:
        TrackingError: If it holds a password, or is no kind of URI that MLflow records to.
    """
    if uri is None:
        path = str(folder.resolve())
        if "?" in path or unquote(path) != path:
            raise TrackingError(
                f"{path}: MLflow reads a `?`, and a `%` before two hex digits, as parts of its SQLite URI.\n"
                "  Name another folder with --dir, or set tracking.uri."
            )
        return f"sqlite:///{folder.resolve() / 'mlflow.db'}"
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise TrackingError(f"tracking.uri is no URI ({error}). Write it as http(s)://host:port.") from error
    scheme = parts.scheme.partition("+")[0]
    if scheme not in SCHEMES:
        shown = uri if "@" not in uri else f"{scheme}:..."
        raise TrackingError(
            f"tracking.uri must be a database or a server, but got {shown!r}.\n"
            "  Give sqlite:////absolute/path.db, http(s)://host:port or postgresql://user@host/database; "
            "leave it out for SQLite in the sweep's folder."
        )
    _refuse_secrets(uri)
    if scheme == "sqlite":
        return f"{parts.scheme}:///{sqlite_file(uri)}"
    if not parts.hostname:
        raise TrackingError(f"tracking.uri names no host: {uri!r}. Write it as {scheme}://host:port.")
    return uri.rstrip("/")


def _refuse_secrets(uri: str) -> None:
    parts = urlsplit(uri)
    # A password with a `/`, `?` or `#` ends the host's part early, and leaves its `@` behind.
    split = "@" in uri and parts.username is None and sqlite_file(uri) is None
    if not split and parts.password is None and not SECRETS & {key.lower() for key in parse_qs(parts.query)}:
        return
    raise TrackingError(
        f"tracking.uri for {parts.hostname} holds a password, which would end up in files and logs.\n"
        "  Take it out of the URI. For a server set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD "
        "(or MLFLOW_TRACKING_TOKEN), for PostgreSQL set PGPASSWORD or use ~/.pgpass."
    )


def sqlite_file(uri: str) -> Path | None:
    """The absolute path of an SQLite URI's file, None for every other kind of URI.

    Raises:
        TrackingError: If the URI names no file.
    """
    parts = urlsplit(uri)
    if parts.scheme.partition("+")[0] != "sqlite":
        return None
    # Not `parts.path`, which ends at a `#`: that is a character like others in a path of SQLite.
    name = uri.partition("://")[2].partition("?")[0].removeprefix(parts.netloc).removeprefix("/")
    if parts.netloc or not name or name == ":memory:":
        raise TrackingError(
            f"tracking.uri names no file: {uri!r}. Write sqlite:////absolute/path/to/mlflow.db."
        )
    return Path(name).resolve()


def check_writable(file: Path) -> None:
    """Refuses a file that cannot be made.

    Raises:
        TrackingError: If the nearest folder above it that exists cannot be written to.
    """
    folder = next(parent for parent in file.parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise TrackingError(
            f"{file} cannot be created: {folder} is not a folder that you can write to.\n"
            "  Give another tracking.uri, or leave it out to record into SQLite in the sweep's folder."
        )


def knock(uri: str) -> None:
    """Connects to a database once; MLflow would try a wrong password for more than a minute."""
    if urlsplit(uri).scheme in ("http", "https") or sqlite_file(uri) is not None:
        return
    import sqlalchemy  # which MLflow brings along

    engine = sqlalchemy.create_engine(uri)
    try:
        engine.connect().close()
    finally:
        engine.dispose()


def artifact_root(folder: Path, uri: str) -> str | None:
    """Where artifacts go: beside an SQLite file, else in the sweep's folder; None lets a server decide."""
    if urlsplit(uri).scheme in ("http", "https"):
        return None
    file = sqlite_file(uri)
    return ((file.parent if file else folder.resolve()) / "mlartifacts").as_uri()


def reason(error: BaseException) -> str:
    """Why a server took nothing: the system's own words (`Connection refused`), else the error's."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    text = str(error).strip() or type(error).__name__
    if found := _REFUSED.search(text):
        return _refusal(found[1])
    return text.splitlines()[0][:REASON_CHARACTERS]


def _refusal(status: str) -> str:
    """In words, without the password."""
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    if status == "403":
        return f"the user {user!r} may not write there" if user else "it forbids to write there"
    if user:
        return f"it refuses the user {user!r} with the password in MLFLOW_TRACKING_PASSWORD"
    if os.environ.get("MLFLOW_TRACKING_TOKEN"):
        return "it refuses the token in MLFLOW_TRACKING_TOKEN"
    return "it asks who you are: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"


@dataclass
class Delivered:
    """What a tracking server is known to have, kept in `<sweep>/mlflow.json`.

    Attributes:
        uri: Absolute tracking URI; null means SQLite in the folder, wherever the folder is moved.
        ledger: Identity of the ledger (Translator.ledger); another one starts from nothing.
        run: MLflow's id of the sweep's run.
        trials: Those of the trials by fingerprint, and of final runs by `<fingerprint>/final`. Not kept in
            the file, which is replaced every few seconds: a session asks the server for them.
        offset: Bytes of the ledger whose lines are all recorded.
    """

    uri: str | None
    experiment: str
    ledger: str = ""
    run: str = ""
    offset: int = 0
    trials: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path) -> Delivered | None:
        """The record of a folder, or None where it has none yet.

        Raises:
            TrackingError: If the file is damaged.
        """
        path = folder / STATE_NAME
        try:
            data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            data.pop("trials", None)  # which earlier versions kept
            return cls(**data)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise TrackingError(
                f"{path} is damaged ({error}). Delete it, then deliver the ledger anew: replora sync {folder}"
            ) from error

    def clear(self) -> None:
        """Forgets everything but the target: the server has nothing of this ledger."""
        self.ledger, self.run, self.offset, self.trials = "", "", 0, {}

    def save(self, folder: Path) -> None:
        """Replaces the folder's record in one step: a reader sees the old or the new one, whole."""
        path = folder / STATE_NAME
        draft = path.with_suffix(".json.new")
        kept = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "trials"}
        with draft.open("w", encoding="utf-8") as file:
            json.dump(kept, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)


@contextmanager
def hold(path: Path, *, wait: bool) -> Iterator[None]:
    """Holds a lock file between processes and threads.

    Args:
        path: The lock file; it stays behind, empty.
        wait: Wait for the holder; else raise at once.

    Raises:
        TrackingError: If it is held elsewhere and `wait` is false.
    """
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise TrackingError(
                f"{path.parent} is being recorded by another process. Wait for it to end, then try again."
            ) from error
        yield
