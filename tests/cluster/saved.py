"""Bytes that autograd keeps between a forward and a backward pass of an adapted backbone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from replora.config import MethodConfig
from replora.methods.adaptation import adapt
from replora.models.base import Backbone, Target
from replora.models.transformer_prefix import transformer_attend

_LLAMA = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


def llama_backbone(sizes: tuple[int, int, int, int], vocabulary: int, dtype: torch.dtype) -> Backbone:
    """A random LLaMA of (width, hidden, depth, heads), its features averaged over the tokens."""
    from transformers import LlamaConfig, LlamaModel

    width, hidden, depth, heads = sizes
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        vocab_size=vocabulary,
    )
    model: nn.Module = LlamaModel(config)
    model.to(dtype).eval().requires_grad_(False)
    targets = []
    for block in range(depth):
        for name, path in _LLAMA.items():
            linear = model.get_submodule(f"layers.{block}.{path}")
            assert isinstance(linear, nn.Linear)
            rows = (0, linear.out_features)
            heads_of = heads if name in ("query", "key", "value") else 0
            targets.append(Target(name, block, f"layers.{block}.{path}", rows, linear.in_features, heads_of))
    backbone = Backbone("llama", model, targets, _mean_of_tokens, width, "sha256:0")
    return replace(backbone, attend=transformer_attend)


def _mean_of_tokens(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    hidden: Tensor = model(batch["tokens"], use_cache=False).last_hidden_state
    return hidden.mean(1)


def saved_bytes(backbone: Backbone, method: MethodConfig, batch: Mapping[str, Tensor]) -> int:
    """Bytes of the distinct storages saved for a batch `[K, B, ...]`, weights and trained values left out."""
    slots = next(iter(batch.values())).shape[0]
    adaptation = adapt(backbone, method)
    parameters = {
        name: torch.full((slots, *shape), 0.01, requires_grad=True)
        for name, shape in adaptation.shapes(method).items()
    }
    adaptation.prepare(parameters, [method] * slots)
    adaptation.drop_with([torch.Generator() for _ in range(slots)])
    known = {
        _place(t) for t in (*backbone.model.parameters(), *backbone.model.buffers(), *parameters.values())
    }
    seam = getattr(adaptation, "_seam", None)
    known |= {_place(cut) for cut in seam._cut} if seam else set()  # made once per step, not per token
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if _place(tensor) not in known:
            saved[_place(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        features = adaptation.features(batch)
    assert features.requires_grad
    return sum(saved.values())


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
