"""Folders of clips as a person has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

#: Height and width of the made frames.
HEIGHT, WIDTH = 40, 50


def made_frames(seed: int, frames: int = 6, *, level: int | None = None) -> np.ndarray:
    """Random bytes `[T, H, W, 3]`; with `level`, around that brightness."""
    drawn = np.random.default_rng(seed).integers(0, 256, (frames, HEIGHT, WIDTH, 3))
    return (drawn if level is None else level + drawn // 8).astype(np.uint8)


def save_frames(folder: Path, pixels: np.ndarray) -> Path:
    """A folder of images `frame1.png`, `frame2.png`, ..., as `ffmpeg frame%d.png` writes them."""
    folder.mkdir(parents=True)
    for number, frame in enumerate(pixels, start=1):
        Image.fromarray(frame).save(folder / f"frame{number}.png")
    return folder


def save_clips(root: Path, train: int = 4) -> Path:
    """Dark, grey and bright clips in three splits: `train` a class, one each for validation and test."""
    for seed, (part, count) in enumerate({"train": train, "val": 1, "test": 1}.items()):
        for number in range(3 * count):
            name = ("dark", "grey", "bright")[number % 3]
            pixels = made_frames(100 * seed + number, level=20 + 90 * (number % 3))
            save_frames(root / part / name / f"clip{number}", pixels)
    return root
