"""Defenses of two classes that no attack can make sense of."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.contracts.defense import Defense
from bench.contracts.inputs import DataInfo, InputSpec

INFO = DataInfo("toy", InputSpec((1, 8, 8)), 2)


class CoinFlip(Defense):
    """Labels are heads or tails, whatever the image: an oracle that contradicts itself."""

    randomized = True

    def forward(self, x: Tensor) -> Tensor:
        return torch.randn(len(x), 2)


class Constant(Defense):
    """Always class 0."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor([[1.0, 0.0]]).repeat(len(x), 1)


class Broken(Defense):
    """NaN for every image."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.full((len(x), 2), torch.nan)
