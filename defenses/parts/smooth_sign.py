"""Smooth stand-ins for the sign and the projection of an inner attack (Xiao & Zheng 2020, section 3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

#: Derivative of the projection where it clips (inside it is 1). Eq. 5 of the paper has such a value, but the text
#: at hand has lost it; a tenth keeps some signal without pretending that a clipped pixel moves freely.
LEAK = 0.1


def tanh_slope(u: Tensor) -> Tensor:
    """d tanh(u) / du."""
    return 1 - u.tanh() ** 2


def softsign_slope(u: Tensor) -> Tensor:
    """d/du of u / (1 + |u|)."""
    return (1 + u.abs()) ** -2


class SmoothSign(torch.autograd.Function):
    """sign(u) forward; the derivative of a smooth sign of u / mean|u| backward, the mean held constant."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, slope: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(u)
        ctx.slope = slope
        return u.sign()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (u,) = ctx.saved_tensors
        scale = u.flatten(1).abs().mean(1).clamp_min(1e-30).view(-1, *[1] * (u.ndim - 1))
        return grad * ctx.slope(u / scale) / scale, None


class LeakyClamp(torch.autograd.Function):
    """clamp(δ, ±radius) forward; backward 1 inside and ``LEAK`` where it clips."""

    @staticmethod
    def forward(ctx: Any, delta: Tensor, radius: float) -> Tensor:
        ctx.save_for_backward(delta.abs() <= radius)
        return delta.clamp(-radius, radius)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (inside,) = ctx.saved_tensors
        return torch.where(inside, grad, LEAK * grad), None
