"""Bottleneck adapters and prefixes on a language model: packed, in generation, and against oracles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PrefixTuningConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from replora.config import AdapterMethod, MethodConfig, PrefixMethod, RunConfig
from replora.methods.layout import Layout, cover
from replora.models.language import language_features
from replora.tasks.base import Batch, Task
from replora.train.model import SlotModel
from replora.train.optim import learning_rate
from replora.train.pack import Pack
from replora.train.streams import example_indices
from tests.contracts.llamas import Folders, base, run, texts
from tests.contracts.packs import (
    RecordingTask,
    losses_of_first,
    neighbour,
    outputs,
    perturbed,
    relative_gap,
)

#: PEFT asks a model for what transformers has renamed.
asks_peft = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

METHODS: dict[str, MethodConfig] = {
    "adapter": AdapterMethod(bottleneck=5),
    "adapter-parallel": AdapterMethod(bottleneck=5, form="parallel", targets=("up", "down"), dropout=0.1),
    "prefix": PrefixMethod(tokens=3),
    "prefix-mlp": PrefixMethod(tokens=3, made="mlp", hidden=7),
}
methods = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
PREFIXES = {name: method for name, method in METHODS.items() if isinstance(method, PrefixMethod)}
prefixes = pytest.mark.parametrize("method", PREFIXES.values(), ids=PREFIXES.keys())


@methods
def test_packed_equals_solo_on_a_llama(folders: Folders, method: MethodConfig, tmp_path: Path) -> None:
    first = run(folders, method)
    others = [run(folders, neighbour(method, i), seed=i + 1, steps=s, lr=1e-3) for i, s in enumerate((20, 7))]
    shared = base(first)
    solo, _ = losses_of_first([first], tmp_path / "solo", shared)
    packed, _ = losses_of_first([first, *others], tmp_path / "pack", shared)
    assert relative_gap(packed, solo) <= 1e-10
    assert solo[-1] < solo[0]


def test_an_adapter_starts_at_the_base_to_the_bit(folders: Folders) -> None:
    config = run(folders, METHODS["adapter"])
    backbone, task = base(config)
    batch = texts(task)
    plain = language_features(backbone.model, {name: each[0] for name, each in batch.items()})
    model = SlotModel(backbone, task, config)
    assert torch.equal(outputs(model, config, model.initial(config), batch), plain)


@methods
def test_every_tensor_changes_the_output_and_gets_a_gradient(folders: Folders, method: MethodConfig) -> None:
    config = run(folders, method)
    backbone, task = base(config)
    model, batch = SlotModel(backbone, task, config), texts(task)
    moved = perturbed(model, config)
    nudges = perturbed(model, config, seed=2)
    before = outputs(model, config, moved, batch)
    for name in moved:
        changed = {**moved, name: nudges[name]}
        assert not torch.allclose(outputs(model, config, changed, batch), before), f"{name} is not heard"
    leaves = {name: each.detach().requires_grad_() for name, each in model.one(moved, method).items()}
    model.adaptation.prepare(leaves, [method])
    task.loss(model.forward(batch, leaves), batch).sum().backward()
    model.adaptation.settle()
    assert all(leaf.grad is not None and leaf.grad.abs().max() > 0 for leaf in leaves.values())


def prompts(beams: int) -> dict[str, Tensor]:
    """Two prompts of a pack of one, the first padded on the left."""
    prompt = torch.tensor([[1, 1, 0, 40, 50, 60], [0, 70, 80, 90, 91, 92]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    search = {"beams": torch.full((2,), beams), "new_tokens": torch.full((2,), 8)}
    return {"prompt": prompt, "mask": mask, **search}


@methods
@pytest.mark.parametrize("beams", [1, 3])
def test_answers_of_a_pack_are_those_of_each_slot_alone(
    folders: Folders, method: MethodConfig, beams: int
) -> None:
    config = run(folders, method)
    backbone, task = base(config)
    model, batch = SlotModel(backbone, task, config), prompts(beams)
    sizes = [neighbour(method, index) for index in (0, 1)]
    runs = [config.model_copy(update={"method": each}) for each in sizes]
    own = [perturbed(model, each, seed=seed) for seed, each in enumerate(runs)]
    packed = packed_outputs(model, sizes, own, batch)
    for slot, (each, tensors) in enumerate(zip(runs, own, strict=True)):
        for row in range(2):
            live = batch["mask"][row].bool()
            alone = {name: value[row : row + 1] for name, value in batch.items()}
            alone |= {"prompt": alone["prompt"][:, live], "mask": alone["mask"][:, live]}
            found = outputs(model, each, tensors, {name: v.unsqueeze(0) for name, v in alone.items()})
            assert packed[slot, row].tolist() == found[0].tolist()
    assert not torch.equal(packed[0], packed[1])


def packed_outputs(
    model: SlotModel, sizes: list[MethodConfig], own: list[dict[str, Tensor]], batch: Batch
) -> Tensor:
    """What a pack of slots with their own tensors gives for one batch."""
    layout = Layout(model.shapes(cover(sizes)))
    matrix = torch.zeros(len(own), layout.width, dtype=torch.float64)
    for row, tensors in zip(matrix, own, strict=True):
        layout.write(row, tensors)
    model.adaptation.prepare(layout.views(matrix), sizes)
    with torch.no_grad():
        every = {name: each.expand(len(own), *each.shape) for name, each in batch.items()}
        return model.forward(every, layout.views(matrix))


@prefixes
def test_greedy_answers_with_a_prefix_equal_a_loop_without_a_cache(
    folders: Folders, method: MethodConfig
) -> None:
    config = run(folders, method)
    backbone, task = base(config)
    model = SlotModel(backbone, task, config)
    tensors = perturbed(model, config)
    prompt = torch.tensor([[0, 40, 50, 60]])
    search = {"beams": torch.ones(1, dtype=torch.long), "new_tokens": torch.full((1,), 5)}
    batch = {"prompt": prompt, "mask": torch.ones_like(prompt), **search}
    found = outputs(model, config, tensors, {name: each.unsqueeze(0) for name, each in batch.items()})[0]
    inner: Any = model.adaptation
    for _ in range(5):
        with torch.no_grad():
            logits = inner.model(input_ids=prompt, use_cache=False).logits
        prompt = torch.cat([prompt, logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert 1 not in prompt[0, 4:], "the text ended early: choose another prompt"
    assert found.tolist() == prompt[0, 4:].tolist()


# --- prefix tuning of stock PEFT -------------------------------------------------------------------


def peft_prefix(folders: Folders, method: PrefixMethod, tensors: dict[str, Tensor]) -> nn.Module:
    """The checkpoint under PEFT's prefix tuning, with our numbers in its places."""
    model = AutoModelForCausalLM.from_pretrained(folders[0], dtype=torch.float64)
    config = PrefixTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=method.tokens,
        prefix_projection=method.made == "mlp",
        encoder_hidden_size=method.hidden,
    )
    wrapped = get_peft_model(model, config, autocast_adapter_dtype=False).double()
    encoder: Any = wrapped.get_submodule("prompt_encoder.default")
    with torch.no_grad():
        if method.made == "direct":
            encoder.embedding.weight.copy_(_interleaved(tensors["key"], tensors["value"], dim=1))
            return wrapped
        encoder.embedding.weight.copy_(tensors["embedding"])
        encoder.transform[0].weight.copy_(tensors["hidden.weight"].T)
        encoder.transform[0].bias.copy_(tensors["hidden.bias"])
        heads = _interleaved(tensors["key.weight"], tensors["value.weight"], dim=1)
        encoder.transform[2].weight.copy_(heads.T)
        encoder.transform[2].bias.copy_(_interleaved(tensors["key.bias"], tensors["value.bias"], dim=0))
    return wrapped


def _interleaved(keys: Tensor, values: Tensor, dim: int) -> Tensor:
    """`[L, ..., D]` each as `[..., L * 2 * D]`: the key and the value of every layer in turn."""
    return torch.stack([keys, values], 1).flatten(0, 1).movedim(0, dim).flatten(dim)


def losses_of(logits: Tensor, batch: Batch) -> Tensor:
    """Losses of the scored tokens given the tokens before them, `[1, B, T]`."""
    found = F.cross_entropy(logits[:, :-1].transpose(1, 2), batch["tokens"][:, 1:], reduction="none")
    return F.pad(found * batch["scored"][:, 1:], (1, 0)).unsqueeze(0)


def peft_losses(config: RunConfig, task: Task, wrapped: nn.Module) -> Tensor:
    """The textbook training loop around the PEFT model."""
    parameters = [p for p in wrapped.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=config.optim.lr, weight_decay=config.optim.weight_decay)
    split, losses = task.split("train"), []
    for step in range(config.train.steps):
        optimizer.param_groups[0]["lr"] = learning_rate(config.optim, step, config.train.steps)
        start = step * config.train.batch
        batch = split.take(example_indices(config.seed, len(split), start, config.train.batch), None)
        found = losses_of(wrapped(input_ids=batch["tokens"]).logits, batch)
        loss = task.loss(found, {name: each.unsqueeze(0) for name, each in batch.items()}).sum()
        optimizer.zero_grad()
        loss.backward()
        assert config.optim.clip_norm is not None
        nn.utils.clip_grad_norm_(parameters, config.optim.clip_norm)
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


@asks_peft
@prefixes
def test_prefix_gives_the_losses_and_tokens_of_peft(folders: Folders, method: PrefixMethod) -> None:
    config = run(folders, method)
    backbone, task = base(config)
    model, batch = SlotModel(backbone, task, config), texts(task)
    tensors = perturbed(model, config)
    wrapped: Any = peft_prefix(folders, method, tensors).eval()
    with torch.no_grad():
        plain = {name: each[0] for name, each in batch.items()}
        theirs = losses_of(wrapped(input_ids=plain["tokens"]).logits, plain)[0]
        torch.testing.assert_close(outputs(model, config, tensors, batch), theirs, rtol=1e-10, atol=1e-10)
        ask = prompts(1)
        ours = outputs(model, config, tensors, {name: each.unsqueeze(0) for name, each in ask.items()})
        answers = wrapped.generate(
            input_ids=ask["prompt"],
            attention_mask=ask["mask"],
            do_sample=False,
            max_new_tokens=8,
            pad_token_id=1,
        )
    assert ours[:, : answers.shape[1] - 6].tolist() == answers[:, 6:].tolist()


@asks_peft
@prefixes
def test_prefix_trains_as_peft_does_over_60_steps(
    folders: Folders, method: PrefixMethod, tmp_path: Path
) -> None:
    config = run(folders, method, steps=60, lr=1e-2)
    backbone, task = base(config)
    recording = RecordingTask(task)
    pack = Pack(config, backbone, recording, slots=1)
    start = SlotModel(backbone, task, config).initial(config)
    theirs = peft_losses(config, task, peft_prefix(folders, method, start))
    pack.admit("ours", config, tmp_path)
    while pack.trials:
        pack.step()
    ours = torch.stack([loss[0] for loss in recording.losses])
    assert relative_gap(ours, theirs) < 1e-9
    assert theirs[-5:].mean() < theirs[:5].mean()
