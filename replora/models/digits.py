"""The small ViT that is pre-trained on the digits 0 to 4, made once on a machine."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from replora.cache import Cached, cached_tensors
from replora.models.base import Architecture
from replora.models.vision import VitFeatures, vit_attend, vit_targets
from replora.models.vit import Vit
from replora.tasks.digits_data import Digits, load_digits, shuffled_by_class

__all__ = [
    "PRETRAINED_CLASSES",
    "PretrainRecipe",
    "build_digits_vit",
    "digits_architecture",
    "digits_weights",
    "pretrain",
    "pretrain_positions",
    "pretrained_classifier",
]

_log = logging.getLogger(__name__)
#: Classes that `vit-digits` has seen; the digits task is on the others.
PRETRAINED_CLASSES = range(5)


@dataclass(frozen=True)
class PretrainRecipe:
    """Everything that the pre-trained weights depend on; a change makes a new cached file.

    All values are choices, from a few runs on the held-out images (docs/tasks.md).

    Attributes:
        version: Raised when the code below, or the model, changes what comes out.
        batch: Images per step, drawn with replacement.
        lr: Peak of a one-cycle schedule of AdamW.
        noise: Standard deviation of Gaussian noise on the normalized pixels.
        clip_norm: Largest gradient norm.
        held_out: Share of every class that pre-training does not see.
    """

    version: int = 1
    steps: int = 400
    batch: int = 32
    lr: float = 2e-3
    weight_decay: float = 0.5
    beta2: float = 0.99
    noise: float = 0.3
    clip_norm: float = 1.0
    held_out: float = 0.2
    seed: int = 0


def build_digits_vit(classes: int = 0) -> Vit:
    """A ViT for 8 x 8 grey images: 16 patches of 2 x 2, width 64, 4 layers, 4 heads."""
    model = Vit(patches=16, patch=2, channels=1, width=64, depth=4, heads=4)
    if classes:
        model.reset_classifier(classes)
    return model


def digits_architecture() -> Architecture:
    """`vit-digits` as `load_backbone` wants it."""
    return Architecture(build_digits_vit, VitFeatures((1, 8, 8)), vit_targets, digits_weights, vit_attend)


def digits_weights(recipe: PretrainRecipe | None = None) -> Cached:
    """Pre-trained weights without the head, from the cache or trained now.

    Args:
        recipe: How they are trained; null is the recipe of `vit-digits`.
    """
    chosen = recipe or PretrainRecipe()
    digits = load_digits()
    # The data is a part of the recipe: another scikit-learn with other digits makes another file.
    key = {**asdict(chosen), "data": digits.data_hash}
    return cached_tensors("vit-digits", key, lambda: pretrain(digits, chosen))


def pretrain_positions(labels: Tensor, recipe: PretrainRecipe) -> tuple[list[int], list[int]]:
    """Positions of the pre-training images and of those held out from it, all of classes 0 to 4."""
    by_class = shuffled_by_class(labels, PRETRAINED_CLASSES, recipe.seed)
    cuts = [round(len(each) * recipe.held_out) for each in by_class]
    seen = chain.from_iterable(each[cut:] for each, cut in zip(by_class, cuts, strict=True))
    held_out = chain.from_iterable(each[:cut] for each, cut in zip(by_class, cuts, strict=True))
    return list(seen), list(held_out)


def pretrain(digits: Digits, recipe: PretrainRecipe) -> dict[str, Tensor]:
    """Weights after pre-training on the classes 0 to 4, without the head.

    One thread, so that sums do not depend on the number of cores; the caller's number of threads and
    random state are as before afterwards.
    """
    _log.warning("pre-training vit-digits once (%d steps); later runs read it from the cache", recipe.steps)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
            torch.manual_seed(recipe.seed)
            weights = pretrained_classifier(digits, recipe).state_dict()
    finally:
        torch.set_num_threads(threads)
    return {name: value for name, value in weights.items() if not name.startswith("head.")}


def pretrained_classifier(digits: Digits, recipe: PretrainRecipe) -> nn.Module:
    """The model after pre-training, with its head, in evaluation mode.

    It is timm's, whose random start is a part of what the recipe stands for.
    """
    from timm.models import VisionTransformer

    classes = len(PRETRAINED_CLASSES)
    model: nn.Module = VisionTransformer(8, 2, 1, classes, embed_dim=64, depth=4, num_heads=4)
    model.train()
    _spread_out(model)
    images = torch.tensor(pretrain_positions(digits.labels, recipe)[0])
    betas = (0.9, recipe.beta2)
    optimizer = torch.optim.AdamW(model.parameters(), recipe.lr, betas, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.lr, total_steps=recipe.steps, cycle_momentum=False
    )
    for _ in range(recipe.steps):
        batch = images[torch.randint(len(images), (recipe.batch,))]
        pixels = digits.images[batch]
        logits = model(pixels + recipe.noise * torch.randn(pixels.shape))
        optimizer.zero_grad()
        F.cross_entropy(logits, digits.labels[batch]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimizer.step()
        schedule.step()
    return model.eval()


def _spread_out(model: nn.Module) -> None:
    """Starts wider than timm does: its 0.02 is meant for widths above 64 and learns slowly here."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
    assert isinstance(model.pos_embed, nn.Parameter)
    nn.init.normal_(model.pos_embed, std=0.1)
