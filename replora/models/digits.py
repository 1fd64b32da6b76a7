"""The small ViT that is pre-trained on the digits 0 to 4, made once on a machine."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from itertools import chain

import torch
from timm.models import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from replora.cache import cached_tensors
from replora.tasks.digits_data import load_digits, shuffled_by_class

__all__ = ["PretrainRecipe", "build_digits_vit", "digits_weights", "pretrain", "pretrain_positions"]

_log = logging.getLogger(__name__)
_SEEN = range(0, 5)


@dataclass(frozen=True)
class PretrainRecipe:
    """Everything that the pre-trained weights depend on; a change makes a new cached file.

    Attributes:
        version: Raised when the code below changes what it makes.
        held_out: Share of every class that pre-training does not see.
    """

    version: int = 1
    steps: int = 400
    batch: int = 64
    lr: float = 1e-3
    weight_decay: float = 0.05
    held_out: float = 0.2
    seed: int = 0


def build_digits_vit(classes: int = 0) -> VisionTransformer:
    """A ViT for 8 x 8 grey images: 16 patches of 2 x 2, width 64, 4 layers, 4 heads."""
    return VisionTransformer(
        img_size=8, patch_size=2, in_chans=1, embed_dim=64, depth=4, num_heads=4, num_classes=classes
    )


def digits_weights(recipe: PretrainRecipe = PretrainRecipe()) -> dict[str, Tensor]:
    """Pre-trained weights without the head, from the cache or trained now."""
    return cached_tensors("vit-digits", asdict(recipe), lambda: pretrain(recipe))


def pretrain_positions(labels: Tensor, recipe: PretrainRecipe) -> tuple[list[int], list[int]]:
    """Positions of the pre-training images and of those held out from it, all of classes 0 to 4."""
    by_class = shuffled_by_class(labels, _SEEN, recipe.seed)
    cuts = [round(len(each) * recipe.held_out) for each in by_class]
    seen = chain.from_iterable(each[cut:] for each, cut in zip(by_class, cuts, strict=True))
    held_out = chain.from_iterable(each[:cut] for each, cut in zip(by_class, cuts, strict=True))
    return list(seen), list(held_out)


def pretrain(recipe: PretrainRecipe) -> dict[str, Tensor]:
    """Weights after pre-training, without the head.

    One thread, so that the sums are the same on machines with other numbers of cores; the caller's
    number of threads and random state are as before afterwards.
    """
    _log.warning("pre-training vit-digits once (%d steps); later runs read it from the cache", recipe.steps)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(recipe.seed)
            model = _train(build_digits_vit(len(_SEEN)), recipe)
    finally:
        torch.set_num_threads(threads)
    return {name: value for name, value in model.state_dict().items() if not name.startswith("head.")}


def _train(model: nn.Module, recipe: PretrainRecipe) -> nn.Module:
    digits = load_digits()
    positions = torch.tensor(pretrain_positions(digits.labels, recipe)[0])
    optimizer = torch.optim.AdamW(model.parameters(), recipe.lr, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=recipe.steps)
    order = torch.Generator().manual_seed(recipe.seed)
    model.train()
    for _ in range(recipe.steps):
        batch = positions[torch.randint(len(positions), (recipe.batch,), generator=order)]
        loss = F.cross_entropy(model(digits.images[batch]), digits.labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model
