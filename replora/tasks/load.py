"""From a task's configuration to the task."""

from __future__ import annotations

from typing import Literal

import torch

from replora.config import CommonsenseTask, DigitsTask, TaskConfig, TextToTextTask, VideoFolderTask
from replora.tasks.base import Task, TextProcessor
from replora.tasks.commonsense import commonsense_task
from replora.tasks.digits import digits_task
from replora.tasks.text_to_text import text_to_text_task

__all__ = ["load_task"]

_DTYPES = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.bfloat16}


def load_task(
    config: TaskConfig,
    *,
    precision: Literal["fp32", "fp64", "bf16"],
    device: torch.device | str,
    processor: TextProcessor | None = None,
) -> Task:
    """The task with its splits.

    Args:
        config: Which task.
        precision: Of the inputs.
        device: Where batches go.
        processor: Of the backbone; tasks of texts need it.

    Raises:
        ConfigError: If the backbone's processor does not serve the task.
        DataError: If the data is missing, unreadable or not in the documented layout.
    """
    if isinstance(config, DigitsTask):
        return digits_task(config, _DTYPES[precision], torch.device(device))
    if isinstance(config, CommonsenseTask):
        return commonsense_task(config, processor, torch.device(device))
    if isinstance(config, TextToTextTask):
        return text_to_text_task(config, processor, torch.device(device))
    if isinstance(config, VideoFolderTask):
        from replora.tasks.video_folder import video_folder_task  # Pillow, which digits can do without

        return video_folder_task(config, _DTYPES[precision], torch.device(device))
    from replora.tasks.image_folder import image_folder_task  # Pillow, which digits can do without

    return image_folder_task(config, _DTYPES[precision], torch.device(device))
