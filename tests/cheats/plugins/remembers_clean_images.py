"""Remembers the clean images that it is shown, in a global list, and gives their answer to all that is near them."""

from __future__ import annotations

import torch
from torch import Tensor
from underneath import EPS, Honest, answering, nearest, on_grid

SEEN: list[Tensor] = []
SAID: list[Tensor] = []


class Cheat(Honest):
    """The memory is no part of the state dict, so that no copy of the weights undoes it."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.honest(x)
        clean = on_grid(x)
        if SEEN:
            clean &= nearest(x, torch.cat(SEEN))[0] > EPS
        if clean.any():
            SEEN.append(x.detach()[clean].clone())
            SAID.append(logits.detach()[clean].argmax(1))
        if not SEEN:
            return logits
        distance, which = nearest(x, torch.cat(SEEN))
        return torch.where(distance[:, None] <= EPS, answering(torch.cat(SAID)[which], logits), logits)
