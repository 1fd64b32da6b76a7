"""Checkpoints and tokenizers in transformers' form: where they lie, and how they are written."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
import warnings
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from replora.config import BackboneConfig
from replora.errors import ConfigError, MachineError
from replora.models.shapes import BART, LLAMA

__all__ = ["PREFIX", "HubTokenizer", "checkpoint_files", "checkpoint_folder", "kind_of"]

PREFIX = "hf/"
_BART = "facebook/bart-base"
#: Longest wait for the hub to say anything, in seconds (choice).
_WAIT_S = 5.0


def checkpoint_folder(config: BackboneConfig) -> Path | None:
    """Where the checkpoint lies; None for a named model with random weights.

    Raises:
        MachineError: If it is not on this machine and cannot be fetched.
    """
    if config.weights not in ("pretrained", "random"):
        folder = Path(config.weights).expanduser()
        if not folder.is_dir():
            raise MachineError(
                f"backbone.weights: {folder} is not a folder. A language model is a folder with config.json, "
                "safetensors and the tokenizer's files."
            )
        return folder
    if config.name in LLAMA:
        if config.weights == "random":
            return None
        raise MachineError(
            f"backbone.weights: the weights of {config.name} are given out by their owner, not fetched.\n"
            "  Set backbone.weights to their local folder (config.json, safetensors, tokenizer) or to random."
        )
    if config.name in BART:
        return None if config.weights == "random" else _fetched(_BART)
    named = config.name.removeprefix(PREFIX)
    local = Path(named).expanduser()
    return local if local.is_dir() else _fetched(named)


def kind_of(folder: Path | None) -> str:
    """What `config.json` of a folder calls its kind of model; empty where it says nothing."""
    try:
        described = json.loads(((folder or Path()) / "config.json").read_bytes())
        return str(described["model_type"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _fetched(name: str) -> Path:
    """The folder of a checkpoint by its hub name: from the hub, or what this machine has where it is away."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    patterns = ["*.json", "*.safetensors", "tokenizer*", "merges.txt"]
    away = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else _no_answer(constants.ENDPOINT)
    try:
        folder = Path(snapshot_download(name, allow_patterns=patterns, local_files_only=bool(away)))
    except (OSError, HFValidationError, HfHubHTTPError) as error:
        reason = [away] if away else str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise MachineError(
            f"backbone.name: {name} is neither a folder nor on this machine by its hub name, and it cannot "
            f"be fetched from the hub ({reason[0]}).\n"
            f"  Offline, set backbone.name to {PREFIX}<folder>, or backbone.weights of a named model to the "
            "folder: config.json, safetensors and the tokenizer."
        ) from error
    if away:
        warnings.warn(f"{away}, so {name} is the copy on this machine, {folder}", UserWarning, stacklevel=2)
    return folder


def _no_answer(endpoint: str) -> str:
    """Why the hub cannot be used; empty where it answers. Its library would wait for minutes."""
    try:
        with urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=_WAIT_S):
            return ""
    except urllib.error.HTTPError:
        return ""  # it is there, and refuses this page
    except (OSError, HTTPException) as error:
        return f"{endpoint} does not answer: {getattr(error, 'reason', error)}"


def checkpoint_files(model: nn.Module, tokenizer: object) -> dict[str, str | bytes | dict[str, Tensor]]:
    """Content of the files that make a model a checkpoint that transformers opens, by name.

    Args:
        model: A language model with its weights.
        tokenizer: Of its backbone; None where it has none.
    """
    tensors = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    # Tied weights have the name that comes first: the embedding's. A head that is the embedding has none.
    places = {tensor.data_ptr(): name for name, tensor in reversed(tensors.items())}
    tensors = {name: tensor for name, tensor in tensors.items() if places[tensor.data_ptr()] == name}
    config: Any = model.config
    files: dict[str, str | bytes | dict[str, Tensor]] = {"model.safetensors": tensors}
    files["config.json"] = config.to_json_string()
    if isinstance(tokenizer, HubTokenizer):
        files |= tokenizer.files()
    return files


class HubTokenizer:
    """The tokenizer of a checkpoint's folder, loaded when first used.

    Args:
        folder: Of the checkpoint.
        vocabulary: Tokens that the model knows; its own may be fewer.
    """

    def __init__(self, folder: Path, vocabulary: int) -> None:
        self._folder, self._vocabulary = folder, vocabulary
        self._loaded: Any = None

    @property
    def end(self) -> int:
        """The token that ends a text."""
        return int(self._tokenizer.eos_token_id)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of each text, with the start token where the model has one.

        Raises:
            ConfigError: If a token is none of the model's.
        """
        found = cast("list[list[int]]", self._tokenizer(list(texts))["input_ids"])
        largest = max((token for text in found for token in text), default=0)
        if largest >= self._vocabulary:
            raise ConfigError(
                f"backbone: the tokenizer in {self._folder} gives token {largest}, but the model knows "
                f"{self._vocabulary} tokens, from 0.\n  Put the model's own tokenizer there."
            )
        return found

    def decode(self, tokens: Sequence[Sequence[int]]) -> list[str]:
        """Texts without special tokens."""
        return cast("list[str]", self._tokenizer.batch_decode(tokens, skip_special_tokens=True))

    def files(self) -> dict[str, bytes]:
        """Content of the tokenizer's own files, by name."""
        names = (
            "tokenizer*",
            "special_tokens_map.json",
            "vocab.json",
            "merges.txt",
            "generation_config.json",
        )
        paths = [path for name in names for path in sorted(self._folder.glob(name)) if path.is_file()]
        return {path.name: path.read_bytes() for path in paths}

    @property
    def _tokenizer(self) -> Any:
        if self._loaded is None:
            from transformers import AutoTokenizer

            try:
                self._loaded = AutoTokenizer.from_pretrained(
                    self._folder, local_files_only=True, trust_remote_code=False
                )
            except (OSError, ValueError, ImportError, KeyError) as error:
                reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
                raise ConfigError(
                    f"backbone: the tokenizer in {self._folder} cannot be read ({reason[0]}).\n"
                    "  The folder needs tokenizer.json, or tokenizer.model and the sentencepiece package."
                ) from error
            if self._loaded.eos_token_id is None:
                raise ConfigError(f"backbone: the tokenizer in {self._folder} has no end token (eos_token).")
        return self._loaded
