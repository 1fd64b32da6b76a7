"""A person's own folder of clips as a classification task."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from replora.config import VideoFolderTask
from replora.tasks.base import Forward, SplitName, for_every_slot
from replora.tasks.classification import Classification
from replora.tasks.clips import CLIPS, count_frames, read_frame
from replora.tasks.folder_index import Example, index_folder
from replora.tasks.image_folder import normalized

__all__ = ["ClipSplit", "VideoClassification", "video_folder_task"]

_EVALUATION_BATCH = 8
_KEPT_BYTES = 512 * 2**20  # choice: about 2,700 frames of 256 x 256
_MARGIN = 8 / 7  # known: frames of 256 for crops of 224
_SCALES = (1.0, 0.875, 0.75, 0.66)  # recalled: multi-scale crops of temporal segment networks


class ClipSplit:
    """Clips of a folder; frames are decoded when first taken and then kept while there is room.

    Args:
        examples: The clips.
        config: Frames, stride, sizes and views.
        dtype: Of the batches.
        device: Of the batches.
    """

    def __init__(
        self, examples: Sequence[Example], config: VideoFolderTask, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._examples, self._config, self._dtype, self._device = examples, config, dtype, device
        self._labels = torch.tensor([example.label for example in examples], device=device)
        self._counts: dict[int, int] = {}
        self._kept: dict[tuple[int, int], Tensor] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._examples)

    @property
    def views(self) -> int:
        """Views of a clip that an evaluation takes the mean of."""
        return self._config.segments * self._config.crops

    def take(self, indices: Tensor, generator: torch.Generator | None) -> dict[str, Tensor]:
        """`video [B, 3, T, S, S]` and `label [B]` at `indices [B]`.

        With a generator: a place in time and a square of 1, 0.875, 0.75 or 0.66 of the shorter side, both
        drawn evenly, and where the task mirrors, half of the clips mirrored; always five numbers per
        clip. Without one, the middle of time and space.

        Raises:
            DataError: If a clip has gone or was damaged since the folder was checked.
        """
        if generator is None:
            return self._seen(indices, 0.5, 0.5)
        drawn = torch.rand(len(indices), 5, generator=generator, device=generator.device).tolist()
        clips = []
        for index, (time, scale, y, x, mirror) in zip(indices.tolist(), drawn, strict=True):
            frames = self._frames(index, time)
            side = round(min(frames.shape[2:]) * _SCALES[int(scale * len(_SCALES))])
            clip = self._crop(frames, side, y, x)
            clips.append(clip.flip(-1) if self._config.mirror and mirror < 0.5 else clip)
        return self._batch(clips, indices)

    def view(self, indices: Tensor, number: int) -> dict[str, Tensor]:
        """One of the `views`: segments are spread evenly in time, crops along the longer side."""
        segment, crop = divmod(number, self._config.crops)
        place = 0.5 if self._config.crops == 1 else crop / (self._config.crops - 1)
        return self._seen(indices, (segment + 0.5) / self._config.segments, place)

    def _seen(self, indices: Tensor, time: float, place: float) -> dict[str, Tensor]:
        """Clips from a place in time, and at one along the longer side; both in [0, 1]."""
        clips = []
        for index in indices.tolist():
            frames = self._frames(index, time)
            y, x = (place, 0.5) if frames.shape[2] > frames.shape[3] else (0.5, place)
            clips.append(self._crop(frames, self._config.image_size, y, x))
        return self._batch(clips, indices)

    def _batch(self, clips: list[Tensor], indices: Tensor) -> dict[str, Tensor]:
        pixels = normalized(torch.stack(clips).to(self._device), self._dtype)
        label = self._labels.index_select(0, indices.to(self._device))
        return {"video": pixels.transpose(1, 2), "label": label}

    def _frames(self, index: int, time: float) -> Tensor:
        """`[T, 3, H, W]` from a place in [0, 1] on; a clip that is too short repeats its last frame."""
        if index not in self._counts:
            self._counts[index] = count_frames(self._examples[index])
        count = self._counts[index]
        room = count - 1 - (self._config.frames - 1) * self._config.stride
        start = min(int(time * (room + 1)), room) if room > 0 else 0
        places = [start + number * self._config.stride for number in range(self._config.frames)]
        return torch.stack([self._frame(index, min(place, count - 1)) for place in places])

    def _frame(self, index: int, number: int) -> Tensor:
        kept = self._kept.get((index, number))
        if kept is not None:
            return kept
        side = round(self._config.image_size * _MARGIN)
        frame = read_frame(self._examples[index], number, side)
        if self._bytes + frame.nbytes <= _KEPT_BYTES:
            self._kept[index, number] = frame
            self._bytes += frame.nbytes
        return frame

    def _crop(self, frames: Tensor, side: int, y: float, x: float) -> Tensor:
        """A square at a place in [0, 1] of the room for it, resized to the task's size, from 0 to 255."""
        top, left = round(y * (frames.shape[2] - side)), round(x * (frames.shape[3] - side))
        square = frames[:, :, top : top + side, left : left + side].float()
        if side == self._config.image_size:
            return square
        size = (self._config.image_size, self._config.image_size)
        return functional.interpolate(square, size, mode="bilinear", align_corners=False, antialias=True)


class VideoClassification(Classification):
    """A classification of clips whose scores are the mean over the views of a clip."""

    def evaluate(self, forward: Forward, slots: int, split: SplitName) -> list[dict[str, float]]:
        """`accuracy` and `loss` of every slot over a split, from the mean probability of all views."""
        examples = self.split(split)
        assert isinstance(examples, ClipSplit)
        correct = torch.zeros(slots, dtype=torch.float64)
        loss = torch.zeros(slots, dtype=torch.float64)
        for indices in torch.arange(len(examples)).split(_EVALUATION_BATCH):
            scores = torch.zeros(())
            for number in range(examples.views):
                batch = examples.view(indices, number)
                output = forward(for_every_slot(batch, slots))
                scores = scores.to(output.device) + output.double().softmax(-1) / examples.views
            label = batch["label"].expand(slots, -1)
            correct += (scores.argmax(-1) == label).sum(1).cpu()
            loss -= scores.gather(-1, label.unsqueeze(-1)).squeeze(-1).log().sum(1).cpu()
        return [
            {"accuracy": right / len(examples), "loss": total / len(examples)}
            for right, total in zip(correct.tolist(), loss.tolist(), strict=True)
        ]


def video_folder_task(
    config: VideoFolderTask, dtype: torch.dtype, device: torch.device
) -> VideoClassification:
    """The task of telling the classes of a folder of clips apart.

    Raises:
        DataError: If the folder is not as `index_folder` wants it.
    """
    index = index_folder(config, CLIPS)
    splits = {
        name: ClipSplit(examples, config, dtype, device)
        for name, examples in index.splits.items()
        if examples
    }
    return VideoClassification(dict(splits), index.classes, index.data_hash, _EVALUATION_BATCH)
