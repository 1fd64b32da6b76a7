"""Checkpoints of one run taken over by another that has trained the same so far. Free of torch."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from replora.atomic import write_atomically

__all__ = ["adopt_checkpoints"]

_PATTERN = "step-????????.safetensors"
_log = logging.getLogger(__name__)


def adopt_checkpoints(source: Path, target: Path, fingerprint: str, at_most: int) -> list[Path]:
    """Copies of a run's checkpoints up to a step, under the name of another run, oldest first.

    Parameters, moments and counters are copied as they are, with their checksum; only the name of the
    run in the file's header changes. A header that cannot be read is named in the log and passed over. A
    target that holds checkpoints already is left alone.

    Args:
        source: Folder of the checkpoints of a run that has trained what the other one trains up to `at_most`.
        target: Folder of the other run's checkpoints.
        fingerprint: Of the other run.
        at_most: Optimizer steps that both runs have in common.
    """
    if any(target.glob(_PATTERN)):
        return []
    copies = []
    for path in sorted(source.glob(_PATTERN)):
        if int(path.stem.removeprefix("step-")) > at_most or (content := _renamed(path, fingerprint)) is None:
            continue
        target.mkdir(parents=True, exist_ok=True)
        write_atomically(target / path.name, content)
        copies.append(target / path.name)
    return copies


def _renamed(path: Path, fingerprint: str) -> bytes | None:
    """The file with another run's name: eight bytes of length, a JSON header, then the tensors."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8:end])
        counters = json.loads(header["__metadata__"]["replora"])
        header["__metadata__"]["replora"] = json.dumps({**counters, "fingerprint": fingerprint})
    except (ValueError, KeyError, TypeError) as error:
        _log.warning("%s: cannot be read: %r; trying the one before", path, error)
        return None
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # as safetensors does, so that the tensors stay aligned
    return len(text).to_bytes(8, "little") + text + content[end:]
