"""Direct factors are PEFT's LoRA and DoRA on a language model too: same start, same loss curve."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor

from replora.config import DoraMethod, LoraMethod
from replora.methods.bake import bake
from replora.tasks.base import Batch
from tests.contracts.llamas import Folders, base, run
from tests.contracts.oracles import starting_point, textbook_losses, under_peft
from tests.contracts.packs import as_pack, losses_of_first, relative_gap

TARGETS = {"query": "q_proj", "value": "v_proj", "down": "down_proj"}


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("fp64", 1e-10)])
@pytest.mark.parametrize("kind", [LoraMethod, DoraMethod])
def test_direct_factors_equal_peft_on_a_llama_over_100_steps(
    kind: type[LoraMethod] | type[DoraMethod],
    precision: str,
    tolerance: float,
    folders: Folders,
    tmp_path: Path,
) -> None:
    method = kind(rank=4, alpha=16.0, targets=tuple(TARGETS))
    config = run(folders, method, steps=100, lr=1e-3)
    config = config.model_copy(update={"train": config.train.model_copy(update={"precision": precision})})
    backbone, task = base(config)
    start = starting_point(config, backbone, task, tmp_path / "start")
    wrapped = under_peft(backbone.model, method, list(TARGETS.values()), bake(start, backbone))
    llama = wrapped.get_submodule("base_model.model")

    def loss_of(batch: Batch) -> Tensor:
        return task.loss(backbone.features(llama, batch).unsqueeze(0), as_pack(batch)).sum()

    theirs = textbook_losses(config, task, llama, loss_of)
    ours, _ = losses_of_first([config], tmp_path / "ours", (backbone, task))
    assert relative_gap(ours, theirs) < tolerance
    assert theirs[-10:].mean() < theirs[:10].mean()
