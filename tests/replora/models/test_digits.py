"""The pre-trained digits ViT: what it saw, how good it is, and that making it disturbs nobody."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from replora.cache import hash_tensors
from replora.config import BackboneConfig
from replora.models import digits as digits_model
from replora.models.digits import PretrainRecipe, digits_weights, pretrain, pretrain_positions
from replora.models.load import load_backbone
from replora.tasks.digits_data import load_digits

#: Enough for a file, far too little for a good model.
SHORT = PretrainRecipe(steps=2, batch=4)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test alone, with the digits already in it."""
    monkeypatch.setenv("REPLORA_CACHE", str(tmp_path))
    load_digits()
    return tmp_path


def test_pretraining_sees_only_classes_0_to_4() -> None:
    labels = load_digits().labels
    seen, held_out = pretrain_positions(labels, PretrainRecipe())
    assert set(labels[seen].tolist()) == set(labels[held_out].tolist()) == {0, 1, 2, 3, 4}
    assert not set(seen) & set(held_out)
    assert len(seen) + len(held_out) == int((labels < 5).sum())


def test_features_tell_the_pretraining_classes_apart_on_held_out_images() -> None:
    """Nearest class mean in feature space; with the head, 96.7 to 99.4 % of 180 over three seeds."""
    digits = load_digits()
    backbone = load_backbone(BackboneConfig(), precision="fp32", device="cpu")
    seen, held_out = pretrain_positions(digits.labels, PretrainRecipe())
    with torch.no_grad():
        features = backbone.features(backbone.model, {"image": digits.images})
    means = torch.stack([features[seen][digits.labels[seen] == label].mean(dim=0) for label in range(5)])
    nearest = torch.cdist(features[held_out], means).argmin(dim=1)
    assert (nearest == digits.labels[held_out]).float().mean() >= 0.95


def test_same_recipe_gives_the_same_weights() -> None:
    digits = load_digits()
    assert hash_tensors(pretrain(digits, SHORT)) == hash_tensors(pretrain(digits, SHORT))


def test_weights_hold_no_head() -> None:
    assert not [name for name in digits_weights().tensors if name.startswith("head.")]


def test_changed_recipe_makes_another_file(own_cache: Path) -> None:
    one = digits_weights(SHORT)
    other = digits_weights(PretrainRecipe(steps=2, batch=4, lr=1e-3))
    assert one.checksum != other.checksum
    assert len(list(own_cache.glob("vit-digits-*.safetensors"))) == 2


def test_damaged_file_is_made_again(own_cache: Path) -> None:
    before = digits_weights(SHORT).checksum
    path = next(own_cache.glob("vit-digits-*.safetensors"))
    path.write_bytes(path.read_bytes()[:1000])
    assert digits_weights(SHORT).checksum == before


def test_cached_weights_are_not_trained_again(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = digits_weights(SHORT).checksum
    monkeypatch.setattr(digits_model, "pretrain", None)
    assert digits_weights(SHORT).checksum == before


def test_pretraining_leaves_random_state_and_threads_alone() -> None:
    digits = load_digits()
    torch.set_num_threads(2)
    state = torch.get_rng_state()
    with torch.inference_mode():
        pretrain(digits, SHORT)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == 2
