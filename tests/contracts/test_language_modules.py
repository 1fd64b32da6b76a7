"""Bottleneck adapters and prefixes on a language model: at the start, in generation, and against PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PrefixTuningConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from replora.config import MethodConfig, PrefixMethod
from replora.methods.layout import Layout, cover
from replora.models.language import language_features
from replora.tasks.base import Batch
from replora.train.model import SlotModel
from tests.contracts.llamas import METHODS, MODULES, PREFIXES, Folders, base, run, texts
from tests.contracts.oracles import textbook_losses
from tests.contracts.packs import as_pack, losses_of_first, neighbour, outputs, perturbed, relative_gap

#: PEFT asks a model for what transformers has renamed.
asks_peft = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

modules = pytest.mark.parametrize("method", MODULES.values(), ids=MODULES.keys())
prefixes = pytest.mark.parametrize("method", PREFIXES.values(), ids=PREFIXES.keys())


def test_an_adapter_starts_at_the_base_to_the_bit(folders: Folders) -> None:
    config = run(folders, METHODS["adapter"])
    backbone, task = base(config)
    batch = texts(task)
    plain = language_features(backbone.model, {name: each[0] for name, each in batch.items()})
    model = SlotModel(backbone, task, config)
    assert torch.equal(outputs(model, config, model.initial(config), batch), plain)


def prompts(beams: int) -> dict[str, Tensor]:
    """Two prompts of a pack of one, the first padded on the left."""
    prompt = torch.tensor([[1, 1, 0, 40, 50, 60], [0, 70, 80, 90, 91, 92]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    search = {"beams": torch.full((2,), beams), "new_tokens": torch.full((2,), 8)}
    return {"prompt": prompt, "mask": mask, **search}


@modules
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
            found = outputs(model, each, tensors, as_pack(alone))
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
    found = outputs(model, config, tensors, as_pack(batch))[0]
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
        ours = outputs(model, config, tensors, as_pack(ask))
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
    start = SlotModel(backbone, task, config).initial(config)
    wrapped = peft_prefix(folders, method, start)

    def loss_of(batch: Batch) -> Tensor:
        return task.loss(losses_of(wrapped(input_ids=batch["tokens"]).logits, batch), as_pack(batch)).sum()

    theirs = textbook_losses(config, task, wrapped, loss_of)
    ours, _ = losses_of_first([config], tmp_path, (backbone, task))
    assert relative_gap(ours, theirs) < 1e-9
    assert theirs[-5:].mean() < theirs[:5].mean()
