"""The pack's optimizer is torch's AdamW with clip_grad_norm_, row by row."""

from __future__ import annotations

import itertools

import pytest
import torch
from pydantic import ValidationError

from replora.config import OptimConfig, OptimPhase
from replora.train.optim import adamw_step, clip_rows, in_force, learning_rate


def test_rows_equal_stock_adamw() -> None:
    optims = [
        OptimConfig(lr=1e-2, weight_decay=0.1, clip_norm=0.5),
        OptimConfig(lr=3e-3, weight_decay=0.0, beta1=0.8, beta2=0.95, clip_norm=None),
    ]
    torch.manual_seed(0)
    values = torch.randn(2, 40, dtype=torch.float64)
    stock = [values[row].clone().requires_grad_() for row in range(2)]
    theirs = [
        torch.optim.AdamW([p], lr=o.lr, weight_decay=o.weight_decay, betas=(o.beta1, o.beta2), foreach=False)
        for p, o in zip(stock, optims, strict=True)
    ]
    moments = torch.zeros_like(values), torch.zeros_like(values)
    for count in range(1, 51):
        grads = torch.randn(2, 40, dtype=torch.float64)
        for parameter, optimizer, optim, grad in zip(stock, theirs, optims, grads, strict=True):
            parameter.grad = grad.clone()
            if optim.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_([parameter], optim.clip_norm)
            optimizer.step()
        clip_rows(grads, [optim.clip_norm for optim in optims])
        adamw_step(values, grads, moments, optims, [count, count], [optim.lr for optim in optims])
    assert torch.allclose(values, torch.stack([p.detach() for p in stock]), rtol=1e-12, atol=1e-14)


def test_a_nan_row_leaves_the_others_bitwise_unchanged() -> None:
    optims = [OptimConfig(), OptimConfig()]
    results = []
    for poison in (0.0, float("nan")):
        values, grads = torch.ones(2, 7), torch.full((2, 7), 0.3)
        grads[1] += poison
        clip_rows(grads, [1.0, 1.0])
        adamw_step(values, grads, (torch.zeros(2, 7), torch.zeros(2, 7)), optims, [1, 1], [1e-3, 1e-3])
        results.append(values[0])
    assert torch.equal(*results)


def test_warm_up_then_cosine_ends_near_zero() -> None:
    optim = OptimConfig(lr=1.0, warmup_steps=4, schedule="cosine")
    rates = [learning_rate(optim, step, 20) for step in range(20)]
    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert rates[4] == 1.0
    assert all(a > b for a, b in itertools.pairwise(rates[4:]))
    assert rates[-1] < 0.01


def test_linear_schedule_reaches_zero_after_the_last_step() -> None:
    optim = OptimConfig(lr=2.0, schedule="linear")
    assert [learning_rate(optim, step, 4) for step in range(5)] == [2.0, 1.5, 1.0, 0.5, 0.0]


def test_each_part_between_restarts_has_the_whole_schedule() -> None:
    optim = OptimConfig(lr=2.0, schedule="linear", restarts=(4, 6))
    rates = [learning_rate(optim, step, 10) for step in range(10)]
    assert rates == [2.0, 1.5, 1.0, 0.5, 2.0, 1.0, 2.0, 1.5, 1.0, 0.5]


def test_only_the_first_part_warms_up() -> None:
    optim = OptimConfig(lr=1.0, schedule="linear", warmup_steps=2, restarts=(4,))
    rates = [learning_rate(optim, step, 6) for step in range(6)]
    assert rates == pytest.approx([1 / 3, 2 / 3, 1.0, 0.5, 1.0, 0.5])


def test_a_phase_changes_the_peak_and_keeps_the_shape() -> None:
    phase = OptimPhase(from_step=2, lr=20.0, weight_decay=0.5)
    optim = OptimConfig(lr=2.0, schedule="linear", phases=(phase,))
    assert [learning_rate(optim, step, 4) for step in range(4)] == [2.0, 1.5, 10.0, 5.0]
    assert [in_force(optim, step).weight_decay for step in (1, 2)] == [1e-4, 0.5]


def test_phases_and_restarts_must_be_at_rising_steps() -> None:
    with pytest.raises(ValidationError, match=r"optim.restarts must be at rising steps, but got 4, 4"):
        OptimConfig(restarts=(4, 4))
    late, early = (OptimPhase(from_step=step, lr=1.0, weight_decay=0.0) for step in (9, 3))
    with pytest.raises(ValidationError, match=r"optim.phases must be at rising steps, but got 9, 3"):
        OptimConfig(phases=(late, early))
