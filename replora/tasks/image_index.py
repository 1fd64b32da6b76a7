"""Which images a folder holds, in which split and class; every image is checked once.

Layouts: `<root>/train/<class>/*` with `val` and `test` beside it (one that is missing is taken from
`train`), or `<root>/<class>/*`. Where a split is taken from others, the hash of an image's relative
path decides, so an image stays in its split when others are added or removed.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from replora.atomic import write_atomically
from replora.cache import cache_folder
from replora.config import ImageFolderTask
from replora.errors import DataError, MachineError
from replora.tasks.base import SplitName

__all__ = ["ImageFile", "ImageIndex", "index_images"]

_log = logging.getLogger(__name__)
_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_SPLITS: tuple[SplitName, ...] = ("train", "val", "test")
_SHOWN = 5


@dataclass(frozen=True)
class ImageFile:
    """One image.

    Attributes:
        path: Where it is.
        relative: The same from the root, with `/`.
        label: Its class, as a position in `ImageIndex.classes`.
    """

    path: Path
    relative: str
    label: int


@dataclass(frozen=True)
class ImageIndex:
    """All images of a folder.

    Attributes:
        classes: Names of the classes, sorted.
        splits: Images of each split, sorted by relative path.
        data_hash: Hash over relative paths and contents.
    """

    classes: tuple[str, ...]
    splits: dict[SplitName, tuple[ImageFile, ...]]
    data_hash: str


def index_images(config: ImageFolderTask) -> ImageIndex:
    """Finds, splits and checks the images of a folder.

    Every image is decoded and hashed once; the result is kept in the cache folder until a path, size
    or time of change differs.

    Raises:
        DataError: If there is no such folder or no image, a link leads out of the folder, an image
            cannot be read, or a class has no image in a split.
    """
    root = config.root.expanduser()
    if not root.is_dir():
        raise DataError(f"task.root: {root} is not a folder. Give a folder of images, <root>/<class>/*.")
    found = _find(root, config)
    classes = tuple(sorted({name for split in found.values() for name, _ in split}))
    _check_classes(root, found, classes)
    splits = {
        split: tuple(
            ImageFile(path, path.relative_to(root).as_posix(), classes.index(name)) for name, path in each
        )
        for split, each in found.items()
    }
    images = sorted((image for split in splits.values() for image in split), key=lambda image: image.relative)
    return ImageIndex(classes, splits, _checked_hash(root, images))


_Found = list[tuple[str, Path]]  # class and path


def _find(root: Path, config: ImageFolderTask) -> dict[SplitName, _Found]:
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
            f"task.root: {root} has {', '.join(others[:_SHOWN])} beside train, but only train, val and test "
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


def _divide(base: Path, images: _Found, val: float, test: float) -> dict[SplitName, _Found]:
    if val + test >= 1.0:
        raise DataError(f"task.val_fraction + task.test_fraction must be below 1, but got {val} + {test}.")
    divided: dict[SplitName, _Found] = {"train": [], "val": [], "test": []}
    for name, path in images:
        digest = hashlib.sha256(os.fsencode(path.relative_to(base).as_posix())).digest()
        draw = int.from_bytes(digest[:8], "big") / 2**64
        divided["test" if draw < test else "val" if draw < test + val else "train"].append((name, path))
    return divided


def _images(base: Path, root: Path) -> _Found:
    found: _Found = []
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


def _check_classes(root: Path, found: dict[SplitName, _Found], classes: Sequence[str]) -> None:
    if len(classes) < 2:
        raise DataError(f"task.root: {root} has one class ({classes[0]}), but two at least are needed.")
    for split, images in found.items():
        if split == "test" and not images:
            continue  # test_fraction: 0; whoever asks for the split is told
        missing = sorted(set(classes) - {name for name, _ in images})
        if missing:
            raise DataError(
                f"task.root: the {split} split of {root} has no image of {', '.join(missing[:_SHOWN])}"
                f"{', ...' if len(missing) > _SHOWN else ''}.\n"
                "  Add images, raise task.val_fraction or task.test_fraction, or make the folders "
                "train, val and test yourself."
            )


def _checked_hash(root: Path, images: Sequence[ImageFile]) -> str:
    """The data hash, after decoding every image; from the cache if nothing changed since."""
    stamp = hashlib.sha256(os.fsencode(root.resolve()))
    for image in images:
        status = _regular(image)
        stamp.update(b"\0%s\0%d\0%d" % (os.fsencode(image.relative), status.st_size, status.st_mtime_ns))
    record = cache_folder() / f"images-{stamp.hexdigest()[:16]}.json"
    if record.exists():
        try:
            return str(json.loads(record.read_bytes())["data_hash"])
        except (ValueError, KeyError, TypeError):
            _log.warning("%s is damaged: checking the images again", record)
    _log.info("checking %d images of %s once", len(images), root)
    data_hash = _check_and_hash(images)
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(record, json.dumps({"root": str(root), "data_hash": data_hash}).encode())
    except OSError as error:
        raise MachineError(
            f"{record}: cannot be written ({error}). Set REPLORA_CACHE to a folder that can."
        ) from error
    return data_hash


def _regular(image: ImageFile) -> os.stat_result:
    if not image.path.is_file():
        raise DataError(f"task.root: {image.path} is not a file that can be read. Remove or replace it.")
    return image.path.stat()


def _check_and_hash(images: Iterable[ImageFile]) -> str:
    digest = hashlib.sha256()
    unreadable: list[str] = []
    for image in images:
        try:
            content = image.path.read_bytes()
            with Image.open(io.BytesIO(content)) as opened:
                opened.load()
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            unreadable.append(f"{image.path}: {error}")
            continue
        name = os.fsencode(image.relative)
        digest.update(b"%d:%s:" % (len(name), name) + hashlib.sha256(content).digest())
    if unreadable:
        more = f"\n  and {len(unreadable) - _SHOWN} more" if len(unreadable) > _SHOWN else ""
        listed = "\n  ".join(unreadable[:_SHOWN])
        raise DataError(
            f"task.root: {len(unreadable)} images cannot be read; remove or replace them:\n  {listed}{more}"
        )
    return f"sha256:{digest.hexdigest()[:16]}"
