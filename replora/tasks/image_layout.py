"""Where the images of a folder lie: their splits and classes.

Layouts: `<root>/train/<class>/*` with `val` and `test` beside it (one that is missing is taken from
`train`), or `<root>/<class>/*`. Where a split is taken from others, the hash of an image's relative
path decides, so an image stays in its split when others are added or removed.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from replora.config import ImageFolderTask
from replora.errors import DataError
from replora.tasks.base import SplitName

__all__ = ["SHOWN", "FoundImages", "find_images"]

#: Most names that one message lists.
SHOWN = 5
#: Class and path of each image.
FoundImages = list[tuple[str, Path]]

_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_SPLITS: tuple[SplitName, ...] = ("train", "val", "test")


def find_images(root: Path, config: ImageFolderTask) -> dict[SplitName, FoundImages]:
    """Class and path of the images of each split, sorted by class and name.

    Raises:
        DataError: If the folder is in no known layout, a link leads out of it, or a class has no image
            in a split.
    """
    found = _find(root, config)
    _check_classes(root, found)
    return found


def _find(root: Path, config: ImageFolderTask) -> dict[SplitName, FoundImages]:
    if not any(each.is_dir() for each in _entries(root / "train", root)):
        named = [split for split in ("val", "test") if (root / split).is_dir()]
        if named:
            raise DataError(
                f"task.root: {root} has {' and '.join(named)}, but no train with a folder for each class."
            )
        return _divide(root, _images(root, root), config.val_fraction, config.test_fraction)
    others = [each.name for each in _entries(root, root) if each.is_dir() and each.name not in _SPLITS]
    if others:
        raise DataError(
            f"task.root: {root} has {', '.join(others[:SHOWN])} beside train, but only train, val and test "
            "are read. Rename or move them."
        )
    found = {split: _images(root / split, root) for split in _SPLITS if (root / split).is_dir()}
    divided = _divide(
        root / "train",
        found["train"],
        0.0 if "val" in found else config.val_fraction,
        0.0 if "test" in found else config.test_fraction,
    )
    return {**divided, **{split: each for split, each in found.items() if split != "train"}}


def _divide(base: Path, images: FoundImages, val: float, test: float) -> dict[SplitName, FoundImages]:
    if val + test >= 1.0:
        raise DataError(f"task.val_fraction + task.test_fraction must be below 1, but got {val} + {test}.")
    divided: dict[SplitName, FoundImages] = {"train": [], "val": [], "test": []}
    for name, path in images:
        digest = hashlib.sha256(os.fsencode(path.relative_to(base).as_posix())).digest()
        draw = int.from_bytes(digest[:8], "big") / 2**64
        divided["test" if draw < test else "val" if draw < test + val else "train"].append((name, path))
    return divided


def _images(base: Path, root: Path) -> FoundImages:
    found: FoundImages = []
    for folder in _entries(base, root):
        if not folder.is_dir():
            continue
        images = [path for path in _entries(folder, root) if _is_image(path)]
        if not images:
            raise DataError(
                f"task.root: the class folder {folder} holds no image.\n"
                f"  Images end in {', '.join(sorted(_SUFFIXES))} and lie directly in their class's folder."
            )
        found.extend((folder.name, path) for path in images)
    if not found:
        raise DataError(f"task.root: {base} holds no images. The layout is <class>/<image>.")
    return found


def _entries(folder: Path, root: Path) -> list[Path]:
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


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES and not path.is_dir()


def _check_classes(root: Path, found: dict[SplitName, FoundImages]) -> None:
    classes = sorted({name for images in found.values() for name, _ in images})
    if len(classes) < 2:
        raise DataError(f"task.root: {root} has one class ({classes[0]}), but two at least are needed.")
    for split, images in found.items():
        if split == "test" and not images:
            continue  # test_fraction: 0; whoever asks for the split is told
        missing = sorted(set(classes) - {name for name, _ in images})
        if missing:
            raise DataError(
                f"task.root: the {split} split of {root} has no image of {', '.join(missing[:SHOWN])}"
                f"{', ...' if len(missing) > SHOWN else ''}.\n"
                "  Add images, raise task.val_fraction or task.test_fraction, or make the folders "
                "train, val and test yourself."
            )
