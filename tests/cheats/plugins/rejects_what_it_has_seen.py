"""A detector that rejects near-duplicates of what it was asked before: every point on the path of an attack."""

from __future__ import annotations

import torch
from torch import Tensor
from underneath import EPS, Honest

ASKED: list[Tensor] = []


class Cheat(Honest):
    """Validation images are asked once, so that the threshold is that of images never seen."""

    def forward(self, x: Tensor) -> Tensor:
        if len(ASKED) < 500:
            ASKED.append(x.detach().clone())
        return self.honest(x)

    def detect(self, x: Tensor) -> Tensor:  # type: ignore[override]
        if not ASKED:
            return x.flatten(1).mean(1)
        before = torch.cat(ASKED)
        distance = torch.cdist(x.flatten(1), before.flatten(1), p=torch.inf)
        near = ((distance > 1e-6) & (distance < EPS)).sum(1)
        return x.flatten(1).mean(1) + near
