r"""AdamW, schedules and clipping for all slots of a pack at once, each with its own numbers.

    g   <- g min(1, clip / (||g|| + 1e-6))                       norm over the slot's own row
    m   <- beta1 m + (1 - beta1) g,      v <- beta2 v + (1 - beta2) g^2
    w   <- w (1 - lr_t wd) - lr_t / (1 - beta1^t) m / (sqrt(v / (1 - beta2^t)) + eps)

the same as `torch.optim.AdamW` with `clip_grad_norm_`, row by row of a `[K, P]` matrix [1].

References:
    [1] Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from replora.config import OptimConfig

__all__ = ["adamw_step", "clip_rows", "in_force", "learning_rate"]


def learning_rate(optim: OptimConfig, step: int, steps: int) -> float:
    """Learning rate of the update number `step` (from 0) in a run of `steps` updates.

    Linear warm-up over `warmup_steps`, then constant, linear to 0 or cosine to 0 over the rest. Where
    there are `restarts`, each part between two of them has the whole schedule, the first one alone the
    warm-up [1]; the peak is that of the phase in force.

    References:
        [1] Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017.
    """
    peak = in_force(optim, step).lr
    if step < optim.warmup_steps:
        return peak * (step + 1) / (optim.warmup_steps + 1)
    if optim.schedule == "constant":
        return peak
    begin = max([optim.warmup_steps, *(at for at in optim.restarts if at <= step)])
    end = min([steps, *(at for at in optim.restarts if at > step)])
    done = (step - begin) / max(1, end - begin)
    if optim.schedule == "linear":
        return peak * (1 - done)
    return peak * 0.5 * (1 + math.cos(math.pi * done))


def in_force(optim: OptimConfig, step: int) -> OptimConfig:
    """The configuration with the learning rate and weight decay that hold for the update number `step`."""
    begun = [phase for phase in optim.phases if phase.from_step <= step]
    if not begun:
        return optim
    return optim.model_copy(update={"lr": begun[-1].lr, "weight_decay": begun[-1].weight_decay})


def clip_rows(grads: Tensor, limits: Sequence[float | None]) -> Tensor:
    """Scales each row of `grads [K, P]` to its largest allowed norm, in place; returns the norms `[K]`."""
    norms: Tensor = torch.linalg.vector_norm(grads, dim=1)
    bound = torch.tensor([math.inf if limit is None else limit for limit in limits], dtype=torch.float64)
    grads.mul_((bound.to(norms) / (norms + 1e-6)).clamp(max=1.0).unsqueeze(1))
    return norms


def adamw_step(
    values: Tensor,
    grads: Tensor,
    moments: tuple[Tensor, Tensor],
    optims: Sequence[OptimConfig],
    counts: Sequence[int],
    rates: Sequence[float],
) -> None:
    """One AdamW update in place.

    Args:
        values: Parameters `[K, P]`.
        grads: Gradients `[K, P]`, clipped.
        moments: First and second moments, `[K, P]` each.
        optims: Betas, eps and weight decay of each slot.
        counts: Number of this update of each slot, from 1.
        rates: Learning rate of this update of each slot.
    """
    steps = torch.tensor(counts, dtype=torch.float32, device=values.device)  # read where the numbers are
    for row, (optim, rate) in enumerate(zip(optims, rates, strict=True)):
        torch._fused_adamw_(
            [values[row]],
            [grads[row]],
            [moments[0][row]],
            [moments[1][row]],
            [],
            [steps[row]],
            lr=rate,
            beta1=optim.beta1,
            beta2=optim.beta2,
            weight_decay=optim.weight_decay,
            eps=optim.eps,
            amsgrad=False,
            maximize=False,
        )
