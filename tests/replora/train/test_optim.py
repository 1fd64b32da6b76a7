"""The pack's optimizer is torch's AdamW with clip_grad_norm_, row by row."""

from __future__ import annotations

import itertools

import pytest
import torch

from replora.config import OptimConfig
from replora.train.optim import adamw_step, clip_rows, learning_rate


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
