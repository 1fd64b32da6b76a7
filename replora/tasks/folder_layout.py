"""Where the examples of a folder lie, images or clips: their splits and classes.

Layouts: `<root>/train/<class>/*` with `val` and `test` beside it (one that is missing is taken from
`train`), or `<root>/<class>/*`. Where a split is taken from others, the hash of an example's relative
path decides, so an example stays in its split when others are added or removed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from replora.config import FolderTask
from replora.errors import DataError
from replora.tasks.base import SplitName

__all__ = ["IMAGE_SUFFIXES", "SHOWN", "FileKind", "Found", "entries", "find_examples", "is_image"]

#: Most names that one message lists.
SHOWN = 5
#: Class and path of each example.
Found = list[tuple[str, Path]]

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_SPLITS: tuple[SplitName, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class FileKind:
    """What an example is.

    Attributes:
        noun: What messages call it.
        accepts: Whether a file or folder in a class's folder is one.
        files: The files that one consists of, `(path, root)`.
        check: Reads the content of such a file, `(path, content)`; raises OSError or ValueError where it
            cannot be read.
        hint: What examples look like, for messages.
    """

    noun: str
    accepts: Callable[[Path], bool]
    files: Callable[[Path, Path], tuple[Path, ...]]
    check: Callable[[Path, bytes], None]
    hint: str


def find_examples(root: Path, config: FolderTask, kind: FileKind) -> dict[SplitName, Found]:
    """Class and path of the examples of each split, sorted by class and name.

    Raises:
        DataError: If the folder is in no known layout, a link leads out of it, or a class has no
            example in a split.
    """
    found = _find(root, config, kind)
    _check_classes(root, found, kind)
    return found


def _find(root: Path, config: FolderTask, kind: FileKind) -> dict[SplitName, Found]:
    if not any(each.is_dir() for each in entries(root / "train", root)):
        named = [split for split in ("val", "test") if (root / split).is_dir()]
        if named:
            raise DataError(
                f"task.root: {root} has {' and '.join(named)}, but no train with a folder for each class."
            )
        return _divide(root, _examples(root, root, kind), config.val_fraction, config.test_fraction)
    others = [each.name for each in entries(root, root) if each.is_dir() and each.name not in _SPLITS]
    if others:
        raise DataError(
            f"task.root: {root} has {', '.join(others[:SHOWN])} beside train, but only train, val and test "
            "are read. Rename or move them."
        )
    found = {split: _examples(root / split, root, kind) for split in _SPLITS if (root / split).is_dir()}
    divided = _divide(
        root / "train",
        found["train"],
        0.0 if "val" in found else config.val_fraction,
        0.0 if "test" in found else config.test_fraction,
    )
    return {**divided, **{split: each for split, each in found.items() if split != "train"}}


def _divide(base: Path, examples: Found, val: float, test: float) -> dict[SplitName, Found]:
    if val + test >= 1.0:
        raise DataError(f"task.val_fraction + task.test_fraction must be below 1, but got {val} + {test}.")
    divided: dict[SplitName, Found] = {"train": [], "val": [], "test": []}
    for name, path in examples:
        digest = hashlib.sha256(os.fsencode(path.relative_to(base).as_posix())).digest()
        draw = int.from_bytes(digest[:8], "big") / 2**64
        divided["test" if draw < test else "val" if draw < test + val else "train"].append((name, path))
    return divided


def _examples(base: Path, root: Path, kind: FileKind) -> Found:
    found: Found = []
    for folder in entries(base, root):
        if not folder.is_dir():
            continue
        examples = [path for path in entries(folder, root) if kind.accepts(path)]
        if not examples:
            raise DataError(f"task.root: the class folder {folder} holds no {kind.noun}.\n  {kind.hint}")
        found.extend((folder.name, path) for path in examples)
    if not found:
        raise DataError(f"task.root: {base} holds no {kind.noun}s. The layout is <class>/<{kind.noun}>.")
    return found


def entries(folder: Path, root: Path) -> list[Path]:
    """What lies in a folder, sorted, hidden names left out; links must stay inside of the root."""
    if not folder.is_dir():
        return []
    entries = sorted((each for each in folder.iterdir() if not each.name.startswith(".")), key=os.fsencode)
    for link in (each for each in (folder, *entries) if each.is_symlink() and each != root):
        try:
            inside = link.resolve(strict=True).is_relative_to(root.resolve())
        except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, before Python 3.13
            raise DataError(f"task.root: {link} is a link that leads nowhere. Remove it.") from error
        if not inside:
            raise DataError(
                f"task.root: {link} is a link to {link.resolve()}, outside of {root}.\n"
                "  Copy what it points to, or remove the link."
            )
    return entries


def is_image(path: Path) -> bool:
    """Whether a path looks like a file of an image."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir()


def _check_classes(root: Path, found: dict[SplitName, Found], kind: FileKind) -> None:
    classes = sorted({name for examples in found.values() for name, _ in examples})
    if len(classes) < 2:
        raise DataError(f"task.root: {root} has one class ({classes[0]}), but two at least are needed.")
    for split, examples in found.items():
        if split == "test" and not examples:
            continue  # test_fraction: 0; whoever asks for the split is told
        missing = sorted(set(classes) - {name for name, _ in examples})
        if missing:
            raise DataError(
                f"task.root: the {split} split of {root} has no {kind.noun} of {', '.join(missing[:SHOWN])}"
                f"{', ...' if len(missing) > SHOWN else ''}.\n"
                f"  Add {kind.noun}s, raise task.val_fraction or task.test_fraction, or make the folders "
                "train, val and test yourself."
            )
