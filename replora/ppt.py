"""The performance-parameter trade-off, PPT, with the sign that V-PETL Bench defines and with the other."""

from __future__ import annotations

import math

__all__ = ["ppt", "ppt_plus_sign_of_the_paper"]


def ppt(metric: float, parameters: float) -> float:
    """`M exp(-log10(P / 1e7 + 1))`: falls as the trainable parameters P grow (V-PETL Bench).

    Args:
        metric: M, in [0, 1].
        parameters: P, trainable parameters.
    """
    return metric * math.exp(-_penalty(parameters))


def ppt_plus_sign_of_the_paper(metric: float, parameters: float) -> float:
    """`M exp(+log10(P / 1e7 + 1))`: the paper's inconsistent variant, which *rewards* parameters.

    RepLoRA's LLaMA and VL-BART tables fit only this sign, its vision and video tables only the other. It
    is here to reproduce those columns and is no measure of anything.
    """
    return metric * math.exp(_penalty(parameters))


def _penalty(parameters: float) -> float:
    return math.log10(parameters / 1e7 + 1)
