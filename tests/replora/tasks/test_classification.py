"""Loss and metrics are those of each slot alone, weighted by examples."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from replora.errors import DataError
from replora.tasks.base import Batch
from replora.tasks.classification import Classification
from replora.tasks.digits import MemorySplit

EXAMPLES, CLASSES, SLOTS = 7, 3, 2


def images() -> Tensor:
    return torch.randn(EXAMPLES, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def labels() -> Tensor:
    return torch.tensor([0, 1, 2, 2, 1, 0, 2])


def task(evaluation_batch: int) -> Classification:
    split = MemorySplit(images(), labels())
    return Classification({"train": split, "val": split}, ("a", "b", "c"), "sha256:0", evaluation_batch)


def forward(batch: Batch) -> Tensor:
    """Three pixels as logits, scaled differently in each slot."""
    scale = torch.tensor([1.0, -2.0]).view(SLOTS, 1, 1)
    return batch["image"].flatten(2)[..., :CLASSES] * scale


@pytest.mark.parametrize("evaluation_batch", [1, 3, 7, 100])
def test_metrics_of_each_slot_are_means_over_all_examples(evaluation_batch: int) -> None:
    metrics = task(evaluation_batch).evaluate(forward, SLOTS, "val")
    for found, scale in zip(metrics, (1.0, -2.0), strict=True):
        logits = images().flatten(1)[:, :CLASSES] * scale
        assert found["accuracy"] == (logits.argmax(dim=1) == labels()).sum().item() / EXAMPLES
        assert found["loss"] == pytest.approx(F.cross_entropy(logits, labels()).item(), rel=1e-6)


def test_evaluation_gives_all_slots_the_same_examples_without_copies() -> None:
    seen: list[Tensor] = []

    def watch(batch: Batch) -> Tensor:
        seen.append(batch["image"])
        return forward(batch)

    task(4).evaluate(watch, SLOTS, "val")
    assert [tuple(each.shape[:2]) for each in seen] == [(SLOTS, 4), (SLOTS, 3)]
    assert [each.stride(0) for each in seen] == [0, 0]


def test_loss_is_the_mean_over_examples_and_separate_over_slots() -> None:
    logits = torch.randn(SLOTS, 4, CLASSES, generator=torch.Generator().manual_seed(0))
    label = torch.tensor([[0, 1, 2, 0], [2, 2, 1, 0]])
    loss = task(4).loss(logits, {"label": label})
    assert loss.shape == (SLOTS,)
    for slot in range(SLOTS):
        torch.testing.assert_close(loss[slot], F.cross_entropy(logits[slot], label[slot]))


def test_nan_in_one_slot_leaves_loss_and_gradient_of_the_other_alone() -> None:
    logits = torch.randn(SLOTS, 4, CLASSES, generator=torch.Generator().manual_seed(0))
    logits[0] = torch.nan
    logits.requires_grad_()
    loss = task(4).loss(logits, {"label": torch.zeros(SLOTS, 4, dtype=torch.long)})
    loss.sum().backward()
    assert logits.grad is not None
    assert loss[0].isnan()
    assert loss[1].isfinite()
    assert logits.grad[1].isfinite().all()


def test_evaluation_of_a_diverged_slot_is_a_wrong_answer_and_no_crash() -> None:
    def diverged(batch: Batch) -> Tensor:
        output = forward(batch)
        output[0] = torch.nan
        return output

    first, second = task(3).evaluate(diverged, SLOTS, "val")
    assert first["loss"] != first["loss"]
    assert second == task(3).evaluate(forward, SLOTS, "val")[1]


def test_loss_of_bf16_logits_is_computed_in_fp32() -> None:
    logits = torch.randn(1, 64, CLASSES, generator=torch.Generator().manual_seed(0)).bfloat16()
    label = torch.zeros(1, 64, dtype=torch.long)
    loss = task(4).loss(logits, {"label": label})
    torch.testing.assert_close(loss, task(4).loss(logits.float(), {"label": label}))


def test_split_without_examples_is_a_data_error() -> None:
    with pytest.raises(DataError, match="no test split"):
        task(4).split("test")
