"""BART as a backbone, with visual features beside its text where it is VL-BART.

What it gives depends on the batch (docs/language.md): losses of target tokens, or generated tokens.
Rows of a pack are folded slot by slot, in the encoder, the decoder and the search alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from replora.cache import hash_samples
from replora.config import BackboneConfig
from replora.errors import CheckpointError, ConfigError
from replora.models.base import Backbone, Beside, Target, are_shared
from replora.models.checkpoints import load_checkpoint, start_at_random
from replora.models.hub import PREFIX, HubTokenizer
from replora.models.shapes import BART
from replora.models.token_loss import token_losses
from replora.models.transformer_prefix import transformer_attend

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

__all__ = ["VisualEmbedding", "bart_backbone", "bart_config", "bart_features", "bart_targets", "build_bart"]

_ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "out_proj"}
_MLP = {"up": "fc1", "down": "fc2"}
_BOX = 5  # known: four corners and the area
_IMAGES = 2  # known: NLVR2 shows two images


def bart_backbone(
    config: BackboneConfig,
    folder: Path | None,
    dtype: torch.dtype,
    device: torch.device,
    share: Callable[[nn.Parameter], None] | None = None,
) -> Backbone:
    """A frozen BART on its device.

    Args:
        config: `bart-base`, `vl-bart-image`, `vl-bart-video` or `hf/<folder>`.
        folder: Of the checkpoint; None for random weights of a named model.
        dtype: Of the weights.
        device: Where the model goes.
        share: As `load_checkpoint` takes it.

    Raises:
        ConfigError: If the folder holds another model than the name says.
        CheckpointError: If its files are damaged or do not fit.
    """
    described: Any = bart_config(config.name, folder)
    model = build_bart(described, dtype, device)
    if folder is None or config.weights == "random":
        start_at_random(model, device)
        fingerprint = hash_samples(model.state_dict())
    else:
        fingerprint = load_checkpoint(model, folder, dtype, device, share)
    if cast("Tensor", model.final_logits_bias).any():
        raise CheckpointError(f"{folder}: final_logits_bias must be zero: losses are taken without it.")
    model.eval().requires_grad_(False)
    return Backbone(
        name=config.name,
        model=model,
        targets=bart_targets(model),
        features=bart_features,
        width=int(described.d_model),
        fingerprint=fingerprint,
        processor=None if folder is None else HubTokenizer(folder, int(described.vocab_size)),
        attend=transformer_attend,
        beside=_beside(model) if described.visual_features else None,
    )


def _beside(model: nn.Module) -> Beside:
    """VL-BART trains its biases and its visual embedding beside any method (known)."""
    names = [name for name, _ in model.named_parameters() if name.endswith(".bias")]
    biases = [name.removesuffix(".bias") for name in names if not name.startswith("visual.")]
    return Beside(tuple(biases), ("visual",))


def bart_config(name: str, folder: Path | None) -> PretrainedConfig:
    """The architecture: of the checkpoint's folder, or of a named BART where there is none.

    `visual_features` is the width of what VL-BART takes beside the text, 0 for text alone; a folder's
    `config.json` may have it too.

    Raises:
        ConfigError: If the folder holds another model than the name says.
    """
    from transformers import BartConfig

    shape = BART.get(name)
    if folder is None:
        assert shape is not None, "only a named model can do without a folder"
        config: Any = BartConfig(vocab_size=shape.vocabulary, max_position_embeddings=shape.positions - 2)
        config.update(_sizes(name))
    else:
        config = BartConfig.from_pretrained(folder, local_files_only=True)
    found = {key: getattr(config, key) for key in _sizes(name)}
    if found != _sizes(name):
        raise ConfigError(
            f"backbone.weights: {folder} is not {name}: {found} instead of {_sizes(name)}.\n"
            f"  For another model, set backbone.name to {PREFIX}{folder}."
        )
    config.visual_features = int(shape.visual if shape else getattr(config, "visual_features", 0))
    return cast("PretrainedConfig", config)


def _sizes(name: str) -> dict[str, int]:
    """What a named model's configuration must say; nothing for others."""
    shape = BART.get(name)
    if shape is None:
        return {}
    sizes = {"d_model": shape.width, "encoder_layers": shape.depth, "decoder_layers": shape.depth}
    sizes |= dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), shape.hidden)
    return sizes | dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), shape.heads)


def build_bart(config: PretrainedConfig, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The model on the meta device; what a checkpoint may lack (the visual embedding) has its start."""
    from transformers import BartForConditionalGeneration, GenerationConfig

    described: Any = config
    with torch.device("meta"):
        model = BartForConditionalGeneration._from_config(described, attn_implementation="sdpa", dtype=dtype)
    model.generation_config = GenerationConfig()  # a search is what the task says, not what config.json says
    model.final_logits_bias = torch.zeros(model.final_logits_bias.shape, dtype=dtype, device=device)
    if described.visual_features:
        visual = VisualEmbedding(described.visual_features, described.d_model)
        model.visual = visual.to(device=device, dtype=dtype)
    return cast("PreTrainedModel", model)


class VisualEmbedding(nn.Module):
    """VL-BART's embedding of regions or frames: of their features, their boxes and the image's place.

    Known: a linear and a norm on the features, the same on boxes and their areas, an embedding of the
    first or second image, summed. *Choice*: the start, normal with deviation 0.02, always the same.

    Args:
        features: Width of the features, F.
        width: Of BART's tokens, d.
    """

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.features, self.features_norm = nn.Linear(features, width), nn.LayerNorm(width)
        self.boxes, self.boxes_norm = nn.Linear(_BOX, width), nn.LayerNorm(width)
        self.images = nn.Embedding(_IMAGES, width)
        generator = torch.Generator().manual_seed(0)
        for module in (self.features, self.boxes, self.images):
            nn.init.normal_(module.weight, std=0.02, generator=generator)
        nn.init.zeros_(self.features.bias)
        nn.init.zeros_(self.boxes.bias)

    def forward(self, visual: Tensor, boxes: Tensor, image: Tensor) -> Tensor:
        """Features `[N, V, F]`, corners `[N, V, 4]` in [0, 1] and 0 or 1 `[N, V]` to `[N, V, d]`."""
        area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
        places = self.boxes_norm(self.boxes(torch.cat([boxes, area.unsqueeze(-1)], -1)))
        found: Tensor = self.features_norm(self.features(visual)) + places + self.images(image)
        return found


def bart_targets(model: nn.Module) -> tuple[Target, ...]:
    """Query, key, value and output of every attention block, up and down of every layer.

    Blocks are those of the encoder, then of each decoder layer its own and the cross one, which has
    the layer's MLP.
    """
    config: Any = model.config
    blocks = [(f"model.encoder.layers.{layer}", "self_attn", True) for layer in range(config.encoder_layers)]
    for layer in range(config.decoder_layers):
        path = f"model.decoder.layers.{layer}"
        blocks += [(path, "self_attn", False), (path, "encoder_attn", True)]
    return tuple(t for index, block in enumerate(blocks) for t in _block_targets(model, index, *block))


def _block_targets(model: nn.Module, index: int, path: str, attention: str, has_mlp: bool) -> list[Target]:
    block: Any = model.get_submodule(f"{path}.{attention}")
    parts = {name: f"{path}.{attention}.{part}" for name, part in _ATTENTION.items()}
    parts |= {name: f"{path}.{part}" for name, part in _MLP.items()} if has_mlp else {}
    heads = dict.fromkeys(("query", "key", "value"), int(block.num_heads))
    linears = {name: cast("nn.Linear", model.get_submodule(module)) for name, module in parts.items()}
    return [
        Target(name, index, parts[name], (0, each.out_features), each.in_features, heads.get(name, 0))
        for name, each in linears.items()
    ]


def bart_features(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """What BART gives for a batch.

    A batch has `source [rows, S]` and its `mask`, both padded on the right, and for VL-BART `visual
    [rows, V, F]`, `boxes [rows, V, 4]`, `image [rows, V]` and `visual_mask`. With `target [rows, T]`
    and `scored`, the tokens that count, it gives losses `[rows, T]`; with `beams [rows]` and `new_tokens
    [rows]`, each the same in all rows, generated tokens `[rows, new_tokens]`, padded with the end token.

    Raises:
        ConfigError: If the batch is of another kind of task, or has features that the model cannot take.
    """
    if "source" not in batch:
        raise ConfigError(
            f"BART takes a source and a target, but the task gives {', '.join(batch)}.\n"
            "  Choose a backbone for the task, or a task for the backbone (`replora ls`)."
        )
    bart = cast("Any", model)
    inputs, mask = _inputs(bart, batch)
    encoded = bart.model.encoder(inputs_embeds=inputs, attention_mask=mask).last_hidden_state
    if "new_tokens" in batch:
        return _generated(bart, encoded, mask, batch)
    target = batch["target"]
    fed = torch.cat([torch.full_like(target[:, :1], bart.config.decoder_start_token_id), target], 1)
    hidden = bart.model.decoder(
        input_ids=fed, encoder_hidden_states=encoded, encoder_attention_mask=mask, use_cache=False
    ).last_hidden_state
    scored = nn.functional.pad(batch["scored"], (1, 0))
    return token_losses(hidden, bart.get_output_embeddings().weight, fed, scored)[:, 1:]


def _inputs(bart: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Embedded source, then the visual features, with their mask (*choice*: both get BART's positions)."""
    text, mask = bart.model.encoder.embed_tokens(batch["source"]), batch["mask"]
    given, taken = batch["visual"].shape[-1] if "visual" in batch else 0, bart.config.visual_features
    if given != taken:
        raise ConfigError(
            f"the task gives {_wide(given)}, but the backbone takes {_wide(taken)}.\n"
            "  Features of width 2048 are for vl-bart-image, of 512 for vl-bart-video, none for bart-base; "
            "task.visual_tokens must be 0 or the most rows of an item."
        )
    if not given:
        return text, mask
    seen = bart.visual(batch["visual"].to(text), batch["boxes"].to(text), batch["image"])
    return torch.cat([text, seen], 1), torch.cat([mask, batch["visual_mask"].to(mask)], 1)


def _wide(features: int) -> str:
    return f"visual features of width {features}" if features else "text alone"


def _generated(bart: Any, encoded: Tensor, mask: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Greedy or beam search with a cache of keys and values; rows stay slot by slot throughout."""
    from transformers import GenerationConfig
    from transformers.modeling_outputs import BaseModelOutput

    wanted, end = int(batch["new_tokens"].flatten()[0]), int(bart.config.eos_token_id)
    settings = GenerationConfig(
        max_new_tokens=wanted,
        num_beams=int(batch["beams"].flatten()[0]),
        do_sample=False,
        decoder_start_token_id=bart.config.decoder_start_token_id,
        eos_token_id=end,
        pad_token_id=end,
    )
    given = BaseModelOutput(last_hidden_state=encoded)
    found: Tensor = bart.generate(
        encoder_outputs=given,
        attention_mask=mask,
        generation_config=settings,
        synced_gpus=are_shared(bart),
    )
    new = found[:, 1:]  # what comes first is the start token
    return nn.functional.pad(new, (0, wanted - new.shape[1]), value=end)
