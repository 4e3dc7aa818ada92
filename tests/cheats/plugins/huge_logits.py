"""Scales its logits to the float limit, where differences, losses and gradients are infinite and the order is kept."""

from __future__ import annotations

from torch import Tensor
from underneath import Honest


class Cheat(Honest):
    """The largest absolute logit of every input is 3.4e38."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.honest(x)
        return logits / logits.detach().abs().amax(1, keepdim=True) * 3.4e38
