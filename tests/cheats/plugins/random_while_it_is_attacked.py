"""Declares to be randomised, and answers at random, from a generator of its own, while it is being differentiated."""

from __future__ import annotations

import random

import torch
from torch import Tensor
from underneath import Differentiated, Honest

DICE = random.SystemRandom()


class Cheat(Honest):
    """No seed brings an answer back, and a probe, which asks for few gradients in a row, sees an honest network."""

    randomized = True

    def __init__(self, *given: object) -> None:
        super().__init__(*given)  # type: ignore[arg-type]
        self.answers = Differentiated()

    def forward(self, x: Tensor) -> Tensor:
        logits = self.honest(x)
        if self.answers.in_a_row() >= 3:
            luck = torch.Generator().manual_seed(DICE.getrandbits(62))
            logits = logits + 1000 * torch.rand(logits.shape, generator=luck)
        return self.answers.watched(logits)
