"""Which examples a folder holds, in which split and class; every file is checked once."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from replora.atomic import write_atomically
from replora.config import FolderTask
from replora.errors import DataError, MachineError
from replora.folders import cache_folder
from replora.tasks.base import SplitName
from replora.tasks.folder_layout import SHOWN, FileKind, find_examples

__all__ = ["Example", "FolderIndex", "index_folder"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Example:
    """One image or clip.

    Attributes:
        path: Where it is.
        relative: The same from the root, with `/`.
        label: Its class, as a position in `FolderIndex.classes`.
        files: What it consists of: itself, or the frames in its folder.
    """

    path: Path
    relative: str
    label: int
    files: tuple[Path, ...]


@dataclass(frozen=True)
class FolderIndex:
    """All examples of a folder.

    Attributes:
        classes: Names of the classes, sorted.
        splits: Examples of each split, sorted by relative path.
        data_hash: Hash over relative paths and contents.
    """

    classes: tuple[str, ...]
    splits: dict[SplitName, tuple[Example, ...]]
    data_hash: str


def index_folder(config: FolderTask, kind: FileKind) -> FolderIndex:
    """Finds, splits and checks the examples of a folder.

    Every file is decoded and hashed once; the result is kept in the cache folder until a path, size or
    time of change differs.

    Raises:
        DataError: If there is no such folder or no example, a link leads out of the folder, a file
            cannot be read, or a class has no example in a split.
    """
    root = config.root.expanduser()
    if not root.is_dir():
        raise DataError(
            f"task.root: {root} is not a folder. Give a folder of {kind.noun}s, <root>/<class>/*."
        )
    found = find_examples(root, config, kind)
    classes = tuple(sorted({name for split in found.values() for name, _ in split}))
    splits = {
        split: tuple(
            Example(path, _relative(path, root), classes.index(name), kind.files(path, root))
            for name, path in each
        )
        for split, each in found.items()
    }
    examples = sorted((each for split in splits.values() for each in split), key=lambda each: each.relative)
    files = [file for example in examples for file in example.files]
    return FolderIndex(classes, splits, _checked_hash(root, files, kind))


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _checked_hash(root: Path, files: Sequence[Path], kind: FileKind) -> str:
    """The data hash, after decoding every file; from the cache if nothing changed since."""
    stamp = hashlib.sha256(os.fsencode(root.resolve()))
    for file in files:
        status = _regular(file)
        relative = os.fsencode(_relative(file, root))
        stamp.update(b"\0%s\0%d\0%d" % (relative, status.st_size, status.st_mtime_ns))
    record = cache_folder() / f"{kind.noun}s-{stamp.hexdigest()[:16]}.json"
    if record.exists():
        try:
            return str(json.loads(record.read_bytes())["data_hash"])
        except (ValueError, KeyError, TypeError):
            _log.warning("%s is damaged: checking the %ss again", record, kind.noun)
    _log.info("checking %d files of %s once", len(files), root)
    data_hash = _check_and_hash(root, files, kind)
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(record, json.dumps({"root": str(root), "data_hash": data_hash}).encode())
    except OSError as error:
        raise MachineError(
            f"{record}: cannot be written ({error}). Set REPLORA_CACHE to a folder that can."
        ) from error
    return data_hash


def _regular(file: Path) -> os.stat_result:
    if not file.is_file():
        raise DataError(f"task.root: {file} is not a file that can be read. Remove or replace it.")
    return file.stat()


def _check_and_hash(root: Path, files: Iterable[Path], kind: FileKind) -> str:
    digest = hashlib.sha256()
    unreadable: list[str] = []
    for file in files:
        try:
            content = file.read_bytes()
            kind.check(file, content)
        except (OSError, ValueError) as error:
            unreadable.append(f"{file}: {error}")
            continue
        name = os.fsencode(_relative(file, root))
        digest.update(b"%d:%s:" % (len(name), name) + hashlib.sha256(content).digest())
    if unreadable:
        more = f"\n  and {len(unreadable) - SHOWN} more" if len(unreadable) > SHOWN else ""
        listed = "\n  ".join(unreadable[:SHOWN])
        raise DataError(
            f"task.root: {len(unreadable)} {kind.noun}s cannot be read; remove or replace them:\n"
            f"  {listed}{more}"
        )
    return f"sha256:{digest.hexdigest()[:16]}"
