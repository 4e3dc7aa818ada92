"""Hands out the gradient of an unrelated function, from a backward pass of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from underneath import Honest


class _Another(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, logits: Tensor) -> Tensor:
        ctx.shape = x.shape
        return logits.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        values = torch.Size(ctx.shape[1:]).numel()
        weights = torch.randn(grads[0].shape[1], values, generator=torch.Generator().manual_seed(0))
        return (grads[0] @ weights).view(ctx.shape), None


class Cheat(Honest):
    """No gradient is missing, zero or infinite."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            logits = self.honest(x)
        return _Another.apply(x, logits)  # type: ignore[no-any-return]
