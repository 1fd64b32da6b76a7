"""Clips as a person has them: a folder of frames, or a file of pixels; no video decoder is needed.

A folder of images is read in the order of the numbers in their names. A `.npy` or `.safetensors` file
holds one array `[T, H, W, 3]` of bytes; it is mapped, and only the frames in use are read.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image, ImageOps
from safetensors import SafetensorError, safe_open
from torch import Tensor

from replora.errors import DataError
from replora.tasks.folder_index import Example
from replora.tasks.folder_layout import IMAGE_SUFFIXES, FileKind, entries, is_image
from replora.tasks.image_folder import check_image

__all__ = ["CLIPS", "count_frames", "read_frame"]

_ARRAYS = frozenset({".npy", ".safetensors"})


def read_frame(example: Example, number: int, short_side: int) -> Tensor:
    """One frame of a clip, `[3, H, W]` of bytes, the shorter side resized to `short_side`.

    Raises:
        DataError: If a file has gone or was damaged since the folder was checked.
    """
    try:
        frame = _frame(example, number)
    except (OSError, ValueError, SyntaxError, SafetensorError, Image.DecompressionBombError) as error:
        raise DataError(f"task.root: {example.path} cannot be read any more ({error}).") from error
    return _resized(frame, short_side)


def count_frames(example: Example) -> int:
    """Frames of a clip."""
    (first, *_) = example.files
    if first.suffix == ".npy":
        return len(np.load(first, mmap_mode="r", allow_pickle=False))
    if first.suffix == ".safetensors":
        with safe_open(first, "np") as file:
            return int(file.get_slice(*file.keys()).get_shape()[0])
    return len(example.files)


def _frame(example: Example, number: int) -> Image.Image:
    (first, *_) = example.files
    if first.suffix == ".npy":
        return Image.fromarray(np.load(first, mmap_mode="r", allow_pickle=False)[number])
    if first.suffix == ".safetensors":
        with safe_open(first, "np") as file:
            return Image.fromarray(file.get_slice(*file.keys())[number])
    with Image.open(example.files[number]) as opened:
        return ImageOps.exif_transpose(opened).convert("RGB")


def _resized(frame: Image.Image, short_side: int) -> Tensor:
    factor = short_side / min(frame.size)
    width, height = (max(short_side, round(side * factor)) for side in frame.size)
    resized = frame.resize((width, height), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


def _is_clip(path: Path) -> bool:
    return path.is_dir() or path.suffix in _ARRAYS


def _files(path: Path, root: Path) -> tuple[Path, ...]:
    if not path.is_dir():
        return (path,)
    frames = sorted(filter(is_image, entries(path, root)), key=_by_numbers)
    if not frames:
        raise DataError(f"task.root: the clip {path} holds no frame.\n  {CLIPS.hint}")
    return tuple(frames)


def _by_numbers(path: Path) -> list[tuple[int, str]]:
    """`frame10` after `frame9`: digits count as numbers."""
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if part.isdigit() else (0, part) for part in parts]


def _check(path: Path, content: bytes) -> None:
    if path.suffix not in _ARRAYS:
        return check_image(path, content)
    try:
        if path.suffix == ".npy":
            found: Any = np.load(io.BytesIO(content), allow_pickle=False)
        else:
            (found,) = (tensor.numpy() for tensor in safetensors.torch.load(content).values())
    except (SafetensorError, EOFError) as error:
        raise ValueError(str(error)) from error
    if found.dtype != np.uint8 or found.ndim != 4 or found.shape[3] != 3 or not found.size:
        raise ValueError(f"must be bytes [T, H, W, 3], but is {found.dtype} {list(found.shape)}")
    return None


CLIPS = FileKind(
    noun="clip",
    accepts=_is_clip,
    files=_files,
    check=_check,
    hint=f"A clip is a folder of images ({', '.join(sorted(IMAGE_SUFFIXES))}), or a .npy or .safetensors "
    "file of bytes [T, H, W, 3].",
)
