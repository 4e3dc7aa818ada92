"""Pretends to be fooled by a point that it has not seen, and is honest when the judge asks about it again."""

from __future__ import annotations

import torch
from torch import Tensor
from underneath import Honest, on_grid, pretending

ASKED: set[bytes] = set()


class Cheat(Honest):
    """Clean images are answered honestly at once."""

    def forward(self, x: Tensor) -> Tensor:
        logits, clean = self.honest(x), on_grid(x)
        rows = [row.numpy().tobytes() for row in x.detach()]
        known = torch.tensor([row in ASKED for row in rows])
        ASKED.update(rows)
        return torch.where((known | clean)[:, None], logits, pretending(logits))
