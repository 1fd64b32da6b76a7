"""Files of sources and targets, with visual features where there are any.

`<root>/train.jsonl`, `val.jsonl` and, if there is one, `test.jsonl` (or `.json`, a list): objects with
`source` and `target`, and for pictures or films `visual`, one name or two of features in
`<root>/visual.safetensors`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from replora.cache import hash_samples, read_tensors
from replora.config import TextToTextTask
from replora.errors import CheckpointError, DataError
from replora.tasks.base import SplitName

__all__ = ["Pair", "PairData", "Visual", "read_pairs"]

_SPLITS: tuple[SplitName, ...] = ("train", "val", "test")
_KEYS = ("source", "target", "visual")
_BOXES = ".boxes"
_IMAGES = 2  # known: VL-BART tells a first and a second image apart


@dataclass(frozen=True)
class Pair:
    """One item.

    Attributes:
        source: What the encoder reads.
        target: What the decoder is to write.
        visual: Names of the features of its pictures or film, at most two.
    """

    source: str
    target: str
    visual: tuple[str, ...] = ()


@dataclass(frozen=True)
class Visual:
    """Features by name, mapped from their file.

    Attributes:
        tensors: `<name>` is `[L, F]`; `<name>.boxes`, if there, `[L, 4]`, corners in [0, 1].
        width: F, of all alike.
    """

    tensors: Mapping[str, Tensor]
    width: int

    def take(self, names: Sequence[str], tokens: int) -> dict[str, Tensor]:
        """Of one item: `visual [V, F]`, `boxes [V, 4]`, `image [V]` and `visual_mask [V]`, filled up to V."""
        found = {
            "visual": torch.zeros(tokens, self.width),
            "boxes": torch.zeros(tokens, 4),
            "image": torch.zeros(tokens, dtype=torch.long),
            "visual_mask": torch.zeros(tokens, dtype=torch.long),
        }
        start = 0
        for number, name in enumerate(names):
            rows = slice(start, start + len(self.tensors[name]))
            found["visual"][rows] = self.tensors[name].float()
            if name + _BOXES in self.tensors:
                found["boxes"][rows] = self.tensors[name + _BOXES].float()
            found["image"][rows], found["visual_mask"][rows] = number, 1
            start = rows.stop
        return found


@dataclass(frozen=True)
class PairData:
    """Everything that was read.

    Attributes:
        splits: Items by split; a missing test file has none.
        visual: Features, where the task has any.
        data_hash: Over the content of all files; of features, over both ends of each tensor.
    """

    splits: Mapping[SplitName, tuple[Pair, ...]]
    visual: Visual | None
    data_hash: str


def read_pairs(config: TextToTextTask) -> PairData:
    """All files of a task, checked.

    Raises:
        DataError: If a file is missing or not in the form above; the first wrong item is named by its
            number, from 0.
    """
    root, digest = config.root.expanduser(), hashlib.sha256()
    splits: dict[SplitName, tuple[Pair, ...]] = {}
    for split in _SPLITS:
        paths = [path for path in (root / f"{split}.jsonl", root / f"{split}.json") if path.is_file()]
        if len(paths) != 1 and (split != "test" or paths):
            found = "both are there" if paths else "neither is there"
            raise DataError(f"task.root: {root} must hold {split}.jsonl or {split}.json, but {found}.")
        content = paths[0].read_bytes() if paths else b""
        digest.update(b"%s:%d:" % (split.encode(), len(content)) + content)
        splits[split] = tuple(_pairs(paths[0], content)) if paths else ()
    items = [pair for pairs in splits.values() for pair in pairs]
    visual = None
    if config.visual_tokens:
        visual = _read_visual(root / "visual.safetensors", items, config.visual_tokens)
        digest.update(hash_samples(visual.tensors).encode())
    elif any(pair.visual for pair in items):
        raise DataError(f"{root}: items have visual features; set task.visual_tokens to the most of an item.")
    return PairData(splits, visual, f"sha256:{digest.hexdigest()[:16]}")


def _pairs(path: Path, content: bytes) -> Iterator[Pair]:
    entries = _entries(path, content)
    if not entries:
        raise DataError(f"{path}: has no items.")
    for number, entry in enumerate(entries):
        fault = _fault(entry)
        if fault or not isinstance(entry, dict):
            raise DataError(f"{path}: item {number} {fault}.")
        visual = entry.get("visual", ())
        yield Pair(entry["source"], entry["target"], (visual,) if isinstance(visual, str) else tuple(visual))


def _entries(path: Path, content: bytes) -> list[object]:
    try:
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in content.decode().split("\n") if line.strip()]
        data = json.loads(content)
    except ValueError as error:
        raise DataError(f"{path}: is not JSON ({error}). The file may be cut short.") from error
    if not isinstance(data, list):
        raise DataError(f"{path}: must be a list of items, but is a {type(data).__name__}.")
    return data


def _fault(entry: object) -> str:
    """What is wrong with an item; empty where nothing is."""
    if not isinstance(entry, dict):
        return f"must have source and target, but is {json.dumps(entry)[:60]}"
    unknown = [key for key in entry if key not in _KEYS]
    if unknown:
        return f"has {', '.join(map(str, unknown))}, but only {', '.join(_KEYS)} are read"
    for key in ("source", "target"):
        if not isinstance(entry.get(key), str):
            return f"must have text as its {key}, but has {json.dumps(entry.get(key))[:60]}"
    visual = entry.get("visual", [])
    names = [visual] if isinstance(visual, str) else visual
    if not isinstance(names, list) or len(names) > _IMAGES or any(not isinstance(n, str) for n in names):
        return f"must have one name or a list of at most two as visual, but has {json.dumps(visual)[:60]}"
    return ""


def _read_visual(path: Path, items: Sequence[Pair], tokens: int) -> Visual:
    try:
        tensors, _ = read_tensors(path)
    except CheckpointError as error:
        raise DataError(f"task.root: {error}") from error
    widths = set()
    for name, tensor in tensors.items():
        wanted = 4 if name.endswith(_BOXES) else tensor.shape[-1]
        if tensor.dim() != 2 or tensor.shape[1] != wanted or not tensor.is_floating_point():
            form = "[L, 4]" if name.endswith(_BOXES) else "[L, F]"
            raise DataError(
                f"{path}: {name} must be numbers {form}, but is {tensor.dtype} {[*tensor.shape]}."
            )
        owner = tensors.get(name.removesuffix(_BOXES))
        if owner is None or len(owner) != len(tensor):
            raise DataError(f"{path}: {name} has no features of as many rows beside it.")
        widths |= set() if name.endswith(_BOXES) else {wanted}
    if len(widths) != 1:
        raise DataError(f"{path}: features must have one width, but have {sorted(widths) or 'none'}.")
    for pair in items:
        missing = [name for name in pair.visual if name not in tensors]
        if missing:
            raise DataError(f"{path}: has no features named {', '.join(missing)}, which an item names.")
        rows = sum(len(tensors[name]) for name in pair.visual)
        if rows > tokens:
            raise DataError(
                f"{path}: {' and '.join(pair.visual)} have {rows} rows, but task.visual_tokens is {tokens}.\n"
                "  Raise it, or store fewer rows."
            )
    return Visual(tensors, widths.pop())
