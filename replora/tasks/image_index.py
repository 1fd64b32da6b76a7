"""Which images a folder holds, in which split and class; every image is checked once."""

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
from replora.config import ImageFolderTask
from replora.errors import DataError, MachineError
from replora.folders import cache_folder
from replora.tasks.base import SplitName
from replora.tasks.image_layout import SHOWN, find_images

__all__ = ["ImageFile", "ImageIndex", "index_images"]

_log = logging.getLogger(__name__)


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
    found = find_images(root, config)
    classes = tuple(sorted({name for split in found.values() for name, _ in split}))
    splits = {
        split: tuple(
            ImageFile(path, path.relative_to(root).as_posix(), classes.index(name)) for name, path in each
        )
        for split, each in found.items()
    }
    images = sorted((image for split in splits.values() for image in split), key=lambda image: image.relative)
    return ImageIndex(classes, splits, _checked_hash(root, images))


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
        more = f"\n  and {len(unreadable) - SHOWN} more" if len(unreadable) > SHOWN else ""
        listed = "\n  ".join(unreadable[:SHOWN])
        raise DataError(
            f"task.root: {len(unreadable)} images cannot be read; remove or replace them:\n  {listed}{more}"
        )
    return f"sha256:{digest.hexdigest()[:16]}"
