"""Language models of Llama's form (Llama, Mistral, Qwen, ...) as backbones.

What a model gives depends on the batch (docs/language.md): losses of tokens for a batch of texts, or
generated tokens for a batch of prompts. Rows of a pack are folded slot by slot, so both serve any
number of slots.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from replora.cache import hash_samples
from replora.config import BackboneConfig
from replora.errors import ConfigError
from replora.models.base import Backbone, Target, are_shared
from replora.models.checkpoints import load_checkpoint, start_at_random
from replora.models.hub import PREFIX, HubTokenizer
from replora.models.shapes import LLAMA
from replora.models.token_loss import token_losses
from replora.models.transformer_prefix import transformer_attend

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

__all__ = [
    "build_language_model",
    "language_backbone",
    "language_config",
    "language_features",
    "language_targets",
]

#: What a configuration calls changes of the logits behind the head (known: transformers' models).
_LOGITS = ("logits_scaling", "logit_scale", "lm_head_multiplier", "final_logit_softcapping")
_PARTS = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


def language_backbone(
    config: BackboneConfig,
    folder: Path | None,
    dtype: torch.dtype,
    device: torch.device,
    share: Callable[[nn.Parameter], None] | None = None,
) -> Backbone:
    """A frozen language model on its device.

    Weights go tensor by tensor from the mapped files to the device in the wanted type, so there is
    never a second copy of the model.

    Args:
        config: `llama-7b` or `llama-13b` with the local folder in `weights`, or `hf/<folder or hub
            name>`; `weights: random` for a model that was not trained.
        folder: Of the checkpoint (`replora.models.hub.checkpoint_folder`).
        dtype: Of the weights.
        device: Where the model goes.
        share: As `load_checkpoint` takes it.

    Raises:
        ConfigError: If the model is not of Llama's form or not the one that the name says.
        CheckpointError: If its files are damaged or do not fit.
    """
    described = language_config(config.name, folder)
    processor = None if folder is None else HubTokenizer(folder, int(described.vocab_size))
    if described.eos_token_id is None and processor is not None and config.weights != "random":
        described.eos_token_id = processor.end  # as the texts that it learns from end
    model = build_language_model(described, dtype)
    targets = language_targets(model)
    if folder is None or config.weights == "random":
        start_at_random(model, device)
        fingerprint = hash_samples(model.state_dict())
    else:
        fingerprint = load_checkpoint(model, folder, dtype, device, share)
    model.eval().requires_grad_(False)
    return Backbone(
        name=config.name,
        model=model,
        targets=targets,
        features=language_features,
        width=int(described.hidden_size),
        fingerprint=fingerprint,
        processor=processor,
        attend=transformer_attend,
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
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
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
                f"  For another model, set backbone.name to {PREFIX}{folder}."
            )
    return cast("PretrainedConfig", config)


def build_language_model(config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The model on the meta device: no memory and no time, whatever its size."""
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                config, attn_implementation="sdpa", dtype=dtype, trust_remote_code=False
            )
    except ValueError as error:
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise ConfigError(
            f"backbone: a {config.model_type} is no causal language model here ({reason[0]}); {_WANTED}"
        ) from error
    _check_head(model)
    return cast("PreTrainedModel", model)


def _check_head(model: nn.Module) -> None:
    """Refuses logits that are more than the head's weight times the hidden states: losses are taken so.

    Raises:
        ConfigError: Naming what the model does to its logits, as Cohere, Granite and Gemma do.
    """
    config: Any = model.config
    found = [f"{name} {value}" for name in _LOGITS if (value := getattr(config, name, None)) not in (None, 1)]
    if getattr(model.get_output_embeddings(), "bias", None) is not None:  # type: ignore[operator]
        found.append("a bias in the language head")
    if found:
        raise ConfigError(
            f"backbone: the logits of this {config.model_type} have {', '.join(found)}, without which its "
            "losses would be wrong.\n"
            "  Use a model whose logits are its head's alone, as Llama's, Mistral's and Qwen's are."
        )


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
    heads = {"query": int(config.num_attention_heads)}
    heads |= dict.fromkeys(("key", "value"), int(config.num_key_value_heads))
    targets = []
    for block, layer in enumerate(layers):
        for name, part in _PARTS.items():
            linear = _linear(layer, part, config.model_type)
            rows = (0, linear.out_features)
            path = f"model.layers.{block}.{part}"
            targets.append(Target(name, block, path, rows, linear.in_features, heads.get(name, 0)))
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
    found = cast("Any", model).generate(
        prompt, attention_mask=batch["mask"], generation_config=settings, synced_gpus=are_shared(model)
    )
    new = found[:, prompt.shape[1] :]
    return nn.functional.pad(new, (0, wanted - new.shape[1]), value=ends[0])


def _ends(model: nn.Module) -> list[int]:
    config: Any = model.config
    end = config.eos_token_id
    if end is None:
        raise ConfigError("backbone: its config.json has no eos_token_id, which ends a generated text")
    return list(end) if isinstance(end, (list, tuple)) else [int(end)]


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
