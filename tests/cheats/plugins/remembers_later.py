"""Remembers clean images, but lets nobody see it before it has been asked about a dozen points near the same one."""

from __future__ import annotations

import torch
from torch import Tensor
from underneath import EPS, Honest, answering, nearest, on_grid

PATIENCE = 12
MEMORY = {"seen": torch.full((1, 64), 9.0), "said": torch.zeros(1, dtype=torch.int64)}
#: How many different points were asked near each image, and the last of them.
ASKED, LAST = [0], [0.0]


class Cheat(Honest):
    """By then a probe is over."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.honest(x)
        new = on_grid(x) & (nearest(x, MEMORY["seen"])[0] > EPS)
        MEMORY["seen"] = torch.cat([MEMORY["seen"], x.detach()[new].flatten(1)])
        MEMORY["said"] = torch.cat([MEMORY["said"], logits.detach()[new].argmax(1)])
        ASKED.extend([0] * int(new.sum()))
        LAST.extend([0.0] * int(new.sum()))
        distance, which = nearest(x, MEMORY["seen"])
        for near, image, point in zip(distance <= EPS, which.tolist(), x.detach().sum((1, 2, 3)).tolist(), strict=True):
            if near and point != LAST[image]:
                ASKED[image], LAST[image] = ASKED[image] + 1, point
        ready = (distance <= EPS) & (torch.tensor(ASKED)[which] > PATIENCE)
        return torch.where(ready[:, None], answering(MEMORY["said"][which], logits), logits)
