"""Language models of Llama's form (Llama, Mistral, Qwen, ...) as backbones; the door of transformers.

What a model gives depends on the batch (docs/language.md): losses of tokens for a batch of texts, or
generated tokens for a batch of prompts. Rows of a pack are folded slot by slot, so both serve any
number of slots.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from replora.config import BackboneConfig
from replora.errors import ConfigError, MachineError
from replora.models.base import Backbone, Target
from replora.models.checkpoints import hash_samples, load_checkpoint, start_at_random
from replora.models.prefix import Prefix
from replora.models.shapes import LLAMA
from replora.models.token_loss import token_losses

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

__all__ = [
    "HubTokenizer",
    "build_language_model",
    "checkpoint_files",
    "language_backbone",
    "language_config",
    "language_features",
    "language_targets",
]

_PREFIX = "hf/"
_PARTS = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


def language_backbone(config: BackboneConfig, dtype: torch.dtype, device: torch.device) -> Backbone:
    """A frozen language model on its device.

    Weights go tensor by tensor from the mapped files to the device in the wanted type, so there is
    never a second copy of the model.

    Args:
        config: `llama-7b` or `llama-13b` with the local folder in `weights`, or `hf/<folder or hub
            name>`; `weights: random` for a model that was not trained.
        dtype: Of the weights.
        device: Where the model goes.

    Raises:
        ConfigError: If the model is not of Llama's form or not the one that the name says.
        CheckpointError: If its files are damaged or do not fit.
        MachineError: If the checkpoint is not on this machine and cannot be fetched.
    """
    folder = _folder(config)
    described = language_config(config.name, folder)
    model = build_language_model(described, dtype)
    targets = language_targets(model)
    if folder is None or config.weights == "random":
        start_at_random(model, device)
        fingerprint = hash_samples(model.state_dict())
    else:
        fingerprint = load_checkpoint(model, folder, dtype, device)
    model.eval().requires_grad_(False)
    return Backbone(
        name=config.name,
        model=model,
        targets=targets,
        features=language_features,
        width=int(described.hidden_size),
        fingerprint=fingerprint,
        processor=None if folder is None else HubTokenizer(folder),
        attend=_attend,
    )


def language_config(name: str, folder: Path | None) -> PretrainedConfig:
    """The architecture: of the checkpoint's folder, or of a named LLaMA where there is none.

    Raises:
        ConfigError: If the folder holds another model than the name says, or no model.
    """
    from transformers import AutoConfig, LlamaConfig

    shape = LLAMA.get(name)
    if folder is None:
        assert shape is not None, "only a named model can do without a folder"
        return LlamaConfig(
            hidden_size=shape.width,
            num_hidden_layers=shape.depth,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.key_heads,
            intermediate_size=shape.hidden,
            vocab_size=shape.vocabulary,
            max_position_embeddings=2048,
            rms_norm_eps=1e-6,
        )
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise ConfigError(
            f"backbone: {folder} describes no model that transformers knows ({reason[0]}).\n"
            "  It must be a folder with config.json, safetensors and the tokenizer's files."
        ) from error
    if shape is not None:
        wanted = {
            "hidden_size": shape.width,
            "num_hidden_layers": shape.depth,
            "intermediate_size": shape.hidden,
        }
        found = {key: getattr(config, key, None) for key in wanted}
        if found != wanted:
            raise ConfigError(
                f"backbone.weights: {folder} is not {name}: {found} instead of {wanted}.\n"
                f"  For another model, set backbone.name to {_PREFIX}{folder}."
            )
    return cast("PretrainedConfig", config)


def build_language_model(config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The model on the meta device: no memory and no time, whatever its size."""
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=dtype)
    except ValueError as error:
        raise ConfigError(
            f"backbone: a {config.model_type} is not a causal language model for transformers."
        ) from error
    return cast("PreTrainedModel", model)


def language_targets(model: nn.Module) -> tuple[Target, ...]:
    """Query, key, value, output, gate, up and down of every layer, layers in order.

    Keys and values have their own number of heads where queries are grouped.

    Raises:
        ConfigError: If the layers are not built that way.
    """
    config: Any = model.config
    layers = getattr(getattr(model, "model", None), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ConfigError(f"backbone: a {config.model_type} has no model.layers; {_WANTED}")
    heads = {"query": int(config.num_attention_heads), "output": 1}
    heads |= dict.fromkeys(("key", "value"), int(config.num_key_value_heads))
    targets = []
    for block, layer in enumerate(layers):
        for name, part in _PARTS.items():
            linear = _linear(layer, part, config.model_type)
            rows = (0, linear.out_features)
            path = f"model.layers.{block}.{part}"
            targets.append(Target(name, block, path, rows, linear.in_features, heads.get(name, 1)))
    return tuple(targets)


def language_features(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """What a language model gives for a batch of texts or of prompts.

    Texts, padded on the right: `tokens [rows, T]` and `scored [rows, T]`, the tokens that count; gives
    their losses `[rows, T]` (see `token_losses`). Prompts, padded on the left: `prompt [rows, T]`, its
    `mask [rows, T]`, `beams [rows]` and `new_tokens [rows]`, each the same in all rows; gives the
    generated tokens `[rows, new_tokens]`, padded with the end token.

    Raises:
        ConfigError: If the batch is of another kind of task.
    """
    if "prompt" in batch:
        return _generated(cast("PreTrainedModel", model), batch)
    if "tokens" not in batch:
        raise ConfigError(
            f"a language model takes texts, but the task gives {', '.join(batch)}.\n"
            "  Choose a backbone for the task, or a task for the backbone (`replora ls`)."
        )
    # Padding on the right needs no mask: a causal model never looks there, and no loss is taken there.
    hidden = model.model(input_ids=batch["tokens"], use_cache=False).last_hidden_state  # type: ignore[operator]
    weight = model.get_output_embeddings().weight  # type: ignore[operator]
    return token_losses(hidden, weight, batch["tokens"], batch["scored"])


def _attend(model: nn.Module, prefixes: Mapping[str, Prefix]) -> None:
    from replora.models.language_prefix import language_attend  # transformers, slow to import

    language_attend(model, prefixes)


def checkpoint_files(model: nn.Module, tokenizer: object) -> dict[str, str | bytes | dict[str, Tensor]]:
    """Content of the files that make a model a checkpoint that transformers opens, by name.

    Args:
        model: A language model with its weights.
        tokenizer: Of its backbone; None where it has none.
    """
    tensors = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    config: Any = model.config
    if config.tie_word_embeddings:
        del tensors["lm_head.weight"]  # the embedding, whose name is in the file
    files: dict[str, str | bytes | dict[str, Tensor]] = {"model.safetensors": tensors}
    files["config.json"] = config.to_json_string()
    if isinstance(tokenizer, HubTokenizer):
        files |= tokenizer.files()
    return files


def _generated(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Tensor:
    """Greedy or beam search with a cache of keys and values; rows stay slot by slot throughout."""
    from transformers import GenerationConfig

    prompt, wanted = batch["prompt"], int(batch["new_tokens"].flatten()[0])
    ends = _ends(model)
    settings = GenerationConfig(
        max_new_tokens=wanted,
        num_beams=int(batch["beams"].flatten()[0]),
        do_sample=False,
        eos_token_id=ends,
        pad_token_id=ends[0],
    )
    found = cast("Any", model).generate(prompt, attention_mask=batch["mask"], generation_config=settings)
    new = found[:, prompt.shape[1] :]
    return nn.functional.pad(new, (0, wanted - new.shape[1]), value=ends[0])


def _ends(model: nn.Module) -> list[int]:
    config: Any = model.config
    end = config.eos_token_id
    if end is None:
        raise ConfigError("backbone: its config.json has no eos_token_id, which ends a generated text")
    return list(end) if isinstance(end, (list, tuple)) else [int(end)]


class HubTokenizer:
    """The tokenizer of a checkpoint's folder, loaded when first used."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._loaded: Any = None

    @property
    def end(self) -> int:
        """The token that ends a text."""
        return int(self._tokenizer.eos_token_id)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of each text, with the start token where the model has one."""
        return cast("list[list[int]]", self._tokenizer(list(texts))["input_ids"])

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
                self._loaded = AutoTokenizer.from_pretrained(self._folder, local_files_only=True)
            except (OSError, ValueError, ImportError, KeyError) as error:
                reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
                raise ConfigError(
                    f"backbone: the tokenizer in {self._folder} cannot be read ({reason[0]}).\n"
                    "  The folder needs tokenizer.json, or tokenizer.model and the sentencepiece package."
                ) from error
            if self._loaded.eos_token_id is None:
                raise ConfigError(f"backbone: the tokenizer in {self._folder} has no end token (eos_token).")
        return self._loaded


def _folder(config: BackboneConfig) -> Path | None:
    """Where the checkpoint lies; None for a named model with random weights."""
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
    named = config.name.removeprefix(_PREFIX)
    local = Path(named).expanduser()
    return local if local.is_dir() else _fetched(named)


def _fetched(name: str) -> Path:
    """The folder of a checkpoint by its hub name: what this machine has, else from the hub."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    patterns = ["*.json", "*.safetensors", "tokenizer*"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (OSError, HFValidationError, HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise MachineError(
            f"backbone.name: {name} is neither a folder nor on this machine by its hub name, and it cannot "
            f"be fetched from the hub ({reason[0]}).\n"
            f"  Offline, set backbone.name to {_PREFIX}<folder>: config.json, safetensors and the tokenizer."
        ) from error


def _linear(layer: nn.Module, part: str, kind: str) -> nn.Linear:
    try:
        found: nn.Module | None = layer.get_submodule(part)
    except AttributeError:
        found = None
    if not isinstance(found, nn.Linear):
        raise ConfigError(f"backbone: a {kind} has no linear {part}; {_WANTED}")
    return found


_WANTED = (
    "its layers cannot be adapted.\n  Use a model of Llama's form: "
    + json.dumps(sorted(_PARTS.values())).strip("[]").replace('"', "")
    + " in each of model.layers."
)
