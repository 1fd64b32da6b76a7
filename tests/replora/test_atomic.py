"""Files that exist whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from replora.atomic import draft_of, write_atomically


def test_the_new_name_is_on_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ledger line that names the file is flushed next, so the name must not be lost in a power cut."""
    flushed: list[bool] = []
    flush = os.fsync

    def note(handle: int) -> None:
        flushed.append(stat.S_ISDIR(os.fstat(handle).st_mode) and (tmp_path / "file").exists())
        flush(handle)

    monkeypatch.setattr("os.fsync", note)
    write_atomically(tmp_path / "file", b"content")
    assert flushed == [False, True]


def test_processes_of_one_number_write_to_different_drafts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Containers that share a cache folder often have the same process numbers."""
    monkeypatch.setattr("os.getpid", lambda: 1)
    assert draft_of(tmp_path / "file") != draft_of(tmp_path / "file")


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    write_atomically(tmp_path / "file", b"old")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "file", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"old")]
