"""Names of runs: short hashes of their configuration, the same on every machine."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel

from replora.config import RunConfig
from replora.reading.schema import is_place

__all__ = ["VERSION", "fingerprint", "group_fingerprint"]

#: Raised when the same configuration would train differently or be written differently.
VERSION = 4


def fingerprint(config: BaseModel) -> str:
    """16 hex digits that name a configuration in the ledger, in MLflow, in checkpoints and in reports.

    The hash (SHA-256) of canonical JSON: sorted keys, numbers as Python writes them after validation
    (so `1` and `1.0` are one where a float is meant), and the version of this function. Fields of type
    `Path` are left out: where data lies differs between machines. What lies there is checked by the
    data's own hash. The section `engine` is left out too: it says how a run is computed, not what.
    """
    return _hashed({"version": VERSION, "config": _described(config, config.model_dump(mode="json"))})


def group_fingerprint(config: RunConfig) -> str:
    """The fingerprint without the seed: the same for all trials of one configuration group."""
    described = _described(config, config.model_dump(mode="json"))
    del described["seed"]
    return _hashed({"version": VERSION, "group": described})


def _described(config: BaseModel, data: dict[str, Any]) -> dict[str, Any]:
    """A configuration's own JSON-able data, without places on this machine."""
    for name, info in type(config).model_fields.items():
        value = getattr(config, name)
        if is_place(info.annotation):
            del data[name]
        elif isinstance(value, BaseModel):
            data[name] = _described(value, data[name])
    return data


def _hashed(content: object) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]
