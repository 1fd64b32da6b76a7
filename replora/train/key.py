"""Which runs can share a pack; free of torch, so that a plan can be made without it."""

from __future__ import annotations

import json
from typing import Any

from replora.config import RunConfig

__all__ = ["pack_key", "shared_fields"]

#: Fields of a method that may differ between the slots of one pack.
_FREE_METHOD_FIELDS = (
    *("rank", "alpha", "hidden", "dropout", "tau"),
    *("bottleneck", "scale"),
    *("tokens", "deviation"),
)
#: Fields of the training that all slots of a pack share.
_SHARED_TRAIN_FIELDS = ("batch", "micro_batch", "precision")


def pack_key(config: RunConfig) -> str:
    """What all slots of a pack have in common; runs with equal keys can train in one pack."""
    return json.dumps(shared_fields(config), sort_keys=True)


def shared_fields(config: RunConfig) -> dict[str, dict[str, Any]]:
    """The sections of a run with those fields alone in which slots of one pack must agree."""
    method = config.method.model_dump(mode="json")
    train = config.train.model_dump(mode="json")
    return {
        "backbone": config.backbone.model_dump(mode="json"),
        "task": config.task.model_dump(mode="json"),
        "method": {name: value for name, value in method.items() if name not in _FREE_METHOD_FIELDS},
        "train": {name: train[name] for name in _SHARED_TRAIN_FIELDS},
        "engine": config.engine.model_dump(mode="json"),
    }
