"""The digits task: fixed, disjoint splits of classes that the backbone has never seen."""

from __future__ import annotations

import hashlib
import json
import sys

import pytest
import torch

from replora.config import DigitsTask
from replora.models.digits import PretrainRecipe, pretrain_positions
from replora.tasks.base import SplitName, Task
from replora.tasks.digits import split_positions
from replora.tasks.digits_data import load_digits
from replora.tasks.load import load_task

SPLITS: tuple[SplitName, ...] = ("train", "val", "test")


def task(train_images: int = 400, precision: str = "fp32") -> Task:
    config = DigitsTask(train_images=train_images)
    return load_task(config, precision=precision, device="cpu")  # type: ignore[arg-type]


def positions(train_images: int = 400) -> dict[SplitName, list[int]]:
    return split_positions(load_digits().labels, train_images)


def test_splits_and_data_are_those_that_every_result_rests_on() -> None:
    """Golden: computed when the splits were fixed; a change here changes every number of this task."""
    found = {
        name: hashlib.sha256(json.dumps(each).encode()).hexdigest()[:16] for name, each in positions().items()
    }
    assert found == {"train": "c40a6f95303adffa", "val": "54281aac45a6e98e", "test": "0e2ec4ed47d41521"}
    assert task().data_hash == "sha256:1497c4b7e6507c87"


def test_splits_are_disjoint_and_use_every_image_of_their_classes() -> None:
    together = [position for each in positions().values() for position in each]
    assert len(together) == len(set(together)) == int((load_digits().labels >= 5).sum())
    assert [len(task().split(name)) for name in SPLITS] == [400, 248, 248]


def test_no_image_was_seen_in_pretraining() -> None:
    labels = load_digits().labels
    seen = {position for each in pretrain_positions(labels, PretrainRecipe()) for position in each}
    for each in positions().values():
        assert set(labels[each].tolist()) == {5, 6, 7, 8, 9}
        assert not seen & set(each)


def test_every_class_has_its_share_of_every_split() -> None:
    labels = load_digits().labels
    shares = {name: torch.bincount(labels[each], minlength=10)[5:] for name, each in positions().items()}
    assert shares["train"].tolist() == [80] * 5
    assert (shares["val"] - shares["test"]).abs().max() <= 1


@pytest.mark.parametrize("train_images", [5, 37, 100])
def test_smaller_training_split_is_even_and_part_of_the_larger(train_images: int) -> None:
    labels = load_digits().labels
    small, large = positions(train_images), positions()
    assert small["train"] == large["train"][:train_images]
    counts = torch.bincount(labels[small["train"]], minlength=10)[5:]
    assert counts.max() - counts.min() <= 1
    assert (small["val"], small["test"]) == (large["val"], large["test"])


def test_take_gives_the_images_and_labels_at_the_indices() -> None:
    digits = load_digits()
    chosen = positions()["val"]
    batch = task().split("val").take(torch.tensor([3, 0, 3]), None)
    wanted = [chosen[3], chosen[0], chosen[3]]
    assert torch.equal(batch["image"], digits.images[wanted])
    assert torch.equal(batch["label"], digits.labels[wanted] - 5)


def test_head_has_one_output_for_each_class() -> None:
    found = task()
    labels = found.split("train").take(torch.arange(400), None)["label"]
    assert sorted(set(labels.tolist())) == list(range(found.head_width))


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("fp64", torch.float64), ("bf16", torch.bfloat16)]
)
def test_images_come_in_the_precision_asked_for(precision: str, dtype: torch.dtype) -> None:
    assert task(precision=precision).split("val").take(torch.tensor([0]), None)["image"].dtype == dtype


def test_images_of_the_pretraining_classes_have_mean_0_and_deviation_1() -> None:
    digits = load_digits()
    pixels = digits.images[digits.labels < 5]
    assert abs(pixels.mean().item()) < 0.01
    assert abs(pixels.std().item() - 1.0) < 0.01


def test_cached_digits_do_not_need_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    before = load_digits().data_hash
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert load_digits().data_hash == before
