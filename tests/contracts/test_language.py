"""The contracts of a pack on a language model: a tiny Llama with grouped queries, texts and answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from replora.config import LinearProbeMethod, MethodConfig, RunConfig
from replora.errors import ConfigError
from replora.methods.bake import merge
from replora.methods.exchange.folders import export
from replora.methods.folder import SavedAdapter, load_adapter
from replora.models.language import language_features
from replora.train.loop import train
from replora.train.model import SlotModel
from tests.contracts.llamas import LOW_RANK, METHODS, Folders, base, run, texts
from tests.contracts.packs import losses_of_first, neighbour, outputs, perturbed, relative_gap
from tests.replora.tiny_llama import save_tiny_llama

methods = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
low_rank = pytest.mark.parametrize("method", LOW_RANK.values(), ids=LOW_RANK.keys())


@methods
def test_packed_equals_solo_on_a_llama(folders: Folders, method: MethodConfig, tmp_path: Path) -> None:
    first = run(folders, method)
    others = [run(folders, neighbour(method, i), seed=i + 1, steps=s, lr=1e-3) for i, s in enumerate((20, 7))]
    shared = base(first)
    solo, _ = losses_of_first([first], tmp_path / "solo", shared)
    packed, _ = losses_of_first([first, *others], tmp_path / "pack", shared)
    assert relative_gap(packed, solo) <= 1e-10
    assert solo[-1] < solo[0]


@low_rank
def test_update_is_zero_at_the_start(folders: Folders, method: MethodConfig) -> None:
    config = run(folders, method)
    backbone, task = base(config)
    batch = texts(task)
    plain = language_features(backbone.model, {name: each[0] for name, each in batch.items()})
    model = SlotModel(backbone, task, config)
    adapted = outputs(model, config, model.initial(config), batch)
    torch.testing.assert_close(adapted, plain, rtol=1e-12, atol=1e-12)


@methods
def test_every_tensor_changes_the_output_and_gets_a_gradient(folders: Folders, method: MethodConfig) -> None:
    config = run(folders, method)
    backbone, task = base(config)
    model, batch = SlotModel(backbone, task, config), texts(task)
    moved, nudges = perturbed(model, config), perturbed(model, config, seed=2)
    before = outputs(model, config, moved, batch)
    for name in moved:
        changed = {**moved, name: nudges[name]}
        assert not torch.allclose(outputs(model, config, changed, batch), before), f"{name} is not heard"
    leaves = {name: each.detach().requires_grad_() for name, each in model.one(moved, method).items()}
    model.adaptation.prepare(leaves, [method])
    task.loss(model.forward(batch, leaves), batch).sum().backward()
    model.adaptation.settle()
    assert all(leaf.grad is not None and leaf.grad.abs().max() > 0 for leaf in leaves.values())


@low_rank
def test_merge_equals_forward_on_a_llama(folders: Folders, method: MethodConfig) -> None:
    config = run(folders, method)
    backbone, task = base(config)
    model, batch = SlotModel(backbone, task, config), texts(task)
    moved = perturbed(model, config)
    merged = merge(SavedAdapter(config, backbone.fingerprint, 0, moved), backbone)
    expected = language_features(merged, {name: each[0] for name, each in batch.items()})
    torch.testing.assert_close(outputs(model, config, moved, batch), expected, rtol=1e-10, atol=1e-10)


def test_full_fine_tuning_keeps_tied_embeddings_tied(folders: Folders, tmp_path: Path) -> None:
    folders = (save_tiny_llama(tmp_path / "tied", tie_word_embeddings=True), folders[1])
    config = run(folders, METHODS["full"])
    backbone, task = base(config)
    model, batch = SlotModel(backbone, task, config), texts(task)
    moved = perturbed(model, config)
    merged = merge(SavedAdapter(config, backbone.fingerprint, 0, moved), backbone)
    assert isinstance(merged, LlamaForCausalLM)
    assert merged.lm_head.weight is merged.model.embed_tokens.weight
    expected = language_features(merged, {name: each[0] for name, each in batch.items()})
    torch.testing.assert_close(outputs(model, config, moved, batch), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("beams", [1, 4])
def test_answers_of_each_slot_are_those_of_its_merged_model(folders: Folders, beams: int) -> None:
    config = run(folders, METHODS["replora"])
    backbone, task = base(config)
    model = SlotModel(backbone, task, config)
    tensors = [perturbed(model, config), model.initial(config)]
    parts = [model.one(each, config.method) for each in tensors]
    parameters = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    prompt = torch.tensor([[1, 1, 0, 40, 50, 60], [0, 70, 80, 90, 91, 92]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    search = {"beams": torch.full((2,), beams), "new_tokens": torch.full((2,), 8)}
    batch = {"prompt": prompt, "mask": mask, **search}
    model.adaptation.prepare(parameters, [config.method] * 2)
    with torch.no_grad():
        packed = model.forward(
            {name: each.expand(2, *each.shape) for name, each in batch.items()}, parameters
        )
    for slot, own in enumerate(tensors):
        # Any: the annotations of `generate` in transformers are refused by mypy
        merged: Any = merge(SavedAdapter(config, backbone.fingerprint, 0, own), backbone)
        for row in range(2):
            alone = prompt[row][mask[row].bool()].unsqueeze(0)
            expected = merged.generate(
                alone,
                attention_mask=torch.ones_like(alone),
                num_beams=beams,
                do_sample=False,
                max_new_tokens=8,
                pad_token_id=1,
            )[0, alone.shape[1] :].tolist()
            assert packed[slot, row].tolist() == expected + [1] * (8 - len(expected))
    assert not torch.equal(packed[0], packed[1])  # the slots have answers of their own


def test_greedy_answers_equal_a_loop_without_a_cache(folders: Folders) -> None:
    config = run(folders, METHODS["lora"])
    backbone, _ = base(config)
    prompt = torch.tensor([[0, 40, 50, 60]])
    batch = {"prompt": prompt, "mask": torch.ones_like(prompt), "beams": torch.ones(1, dtype=torch.long)}
    with torch.no_grad():
        found = language_features(backbone.model, {**batch, "new_tokens": torch.full((1,), 6)})
        for _ in range(6):
            best = backbone.model(input_ids=prompt, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
            prompt = torch.cat([prompt, best], dim=1)
    assert 1 not in prompt[0, 4:], "the text ended early: choose another prompt"
    assert found[0].tolist() == prompt[0, 4:].tolist()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks
@low_rank
def test_exported_adapter_opens_with_stock_peft_on_a_llama(
    folders: Folders, method: MethodConfig, tmp_path: Path
) -> None:
    config = run(folders, method, steps=3)
    config = config.model_copy(update={"train": config.train.model_copy(update={"precision": "fp32"})})
    train(config, tmp_path / "run")
    export(tmp_path / "run", "peft-lora", tmp_path / "peft")
    stock = AutoModelForCausalLM.from_pretrained(folders[0], dtype=torch.float32)
    tokens = torch.tensor([[0, 40, 50, 60, 70]])
    plain = stock(tokens).logits
    ours = merged_logits(tmp_path / "run", config, tokens)
    theirs = PeftModel.from_pretrained(stock, tmp_path / "peft").eval()(tokens).logits
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(theirs, plain, rtol=1e-4, atol=1e-5)


def merged_logits(run_dir: Path, config: RunConfig, tokens: Tensor) -> Tensor:
    backbone, _ = base(config)
    with torch.no_grad():
        logits: Tensor = merge(load_adapter(run_dir / "adapter"), backbone)(tokens).logits
    return logits


def test_linear_probe_of_a_language_model_is_refused(folders: Folders) -> None:
    config = run(folders, LinearProbeMethod())
    backbone, task = base(config)
    with pytest.raises(ConfigError, match="trains only a task head, and commonsense has none"):
        SlotModel(backbone, task, config)
