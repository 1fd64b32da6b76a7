"""A person's own folder of images as a classification task."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from replora.config import ImageFolderTask
from replora.errors import DataError
from replora.tasks.base import IMAGENET_MEAN, IMAGENET_STD, Split, SplitName
from replora.tasks.classification import Classification
from replora.tasks.folder_index import Example, index_folder
from replora.tasks.folder_layout import IMAGE_SUFFIXES, FileKind, is_image

__all__ = ["IMAGES", "FolderSplit", "check_image", "image_folder_task", "normalized"]

_EVALUATION_BATCH = 16
_KEPT_BYTES = 512 * 2**20  # choice: 3,500 images at 224 px


def check_image(path: Path, content: bytes) -> None:
    """Decodes an image.

    Raises:
        ValueError: If that cannot be done.
    """
    try:
        with Image.open(io.BytesIO(content)) as opened:
            opened.load()
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from error


IMAGES = FileKind(
    noun="image",
    accepts=is_image,
    files=lambda path, root: (path,),
    check=check_image,
    hint=f"Images end in {', '.join(sorted(IMAGE_SUFFIXES))} and lie directly in their class's folder.",
)


class FolderSplit:
    """Images of a folder, decoded when first taken and then kept while there is room.

    Room is 512 MiB for each split; as epochs visit all images alike, what is kept is never replaced.

    Args:
        images: The images.
        image_size: Side in pixels.
        dtype: Of the batches.
        device: Of the batches.
    """

    def __init__(
        self, images: Sequence[Example], image_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._images = images
        self._labels = torch.tensor([image.label for image in images], device=device)
        self._image_size = image_size
        self._dtype = dtype
        self._device = device
        self._kept: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._images)

    def take(self, indices: Tensor, generator: torch.Generator | None) -> dict[str, Tensor]:
        """`image [B, 3, S, S]` and `label [B]` at `indices [B]`.

        With a generator, each image is mirrored left to right with probability one half; one number
        per image is drawn from it, and nothing else.

        Raises:
            DataError: If an image has gone or was damaged since the folder was checked.
        """
        pixels = torch.stack([self._decoded(index) for index in indices.tolist()])
        if generator is not None:
            mirrored = torch.rand(len(pixels), generator=generator, device=generator.device) < 0.5
            pixels = torch.where(mirrored.cpu().view(-1, 1, 1, 1), pixels.flip(-1), pixels)
        return {
            "image": normalized(pixels.to(self._device), self._dtype),
            "label": self._labels.index_select(0, indices.to(self._device)),
        }

    def _decoded(self, index: int) -> Tensor:
        kept = self._kept.get(index)
        if kept is not None:
            return kept
        pixels = _decode(self._images[index], self._image_size)
        if (len(self._kept) + 1) * pixels.nbytes <= _KEPT_BYTES:
            self._kept[index] = pixels
        return pixels


def normalized(pixels: Tensor, dtype: torch.dtype) -> Tensor:
    """Pixels `[..., 3, H, W]` from 0 to 255 by ImageNet's mean and deviation, in a type."""
    precise = torch.float64 if dtype == torch.float64 else torch.float32
    mean = torch.tensor(IMAGENET_MEAN, dtype=precise, device=pixels.device).view(-1, 1, 1)
    std = torch.tensor(IMAGENET_STD, dtype=precise, device=pixels.device).view(-1, 1, 1)
    return ((pixels.to(precise) / 255.0 - mean) / std).to(dtype)


def image_folder_task(config: ImageFolderTask, dtype: torch.dtype, device: torch.device) -> Classification:
    """The task of telling the classes of a folder apart.

    Raises:
        DataError: If the folder is not as `index_folder` wants it.
    """
    index = index_folder(config, IMAGES)
    splits: dict[SplitName, Split] = {
        name: FolderSplit(images, config.image_size, dtype, device)
        for name, images in index.splits.items()
        if images
    }
    return Classification(splits, index.classes, index.data_hash, _EVALUATION_BATCH)


def _decode(image: Example, size: int) -> Tensor:
    """Pixels `[3, S, S]`, uint8: turned as the camera says, squeezed to a square, bicubic."""
    try:
        with Image.open(image.path) as opened:
            upright = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"task.root: {image.path} cannot be read any more ({error}).") from error
    resized = upright.resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()
