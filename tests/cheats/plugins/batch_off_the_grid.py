"""Lets the answer to inputs off the grey levels depend on the rest of the batch; a clean batch shows nothing of it."""

from __future__ import annotations

import torch
from torch import Tensor
from underneath import Honest, on_grid, pretending


class Cheat(Honest):
    """A hash of the batch's sum picks one half of its rows, which are fooled already."""

    def forward(self, x: Tensor) -> Tensor:
        logits, own = self.honest(x), x.detach().double().flatten(1).sum(1)
        chosen = ((1e4 * (own + own.sum())).long() % 2 == 0) & ~on_grid(x)
        return torch.where(chosen[:, None], pretending(logits), logits)
