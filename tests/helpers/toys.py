"""Defenses of three classes and a few lines, for what attacks must survive."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.contracts.defense import Defense
from bench.contracts.inputs import DataInfo, InputSpec

INFO = DataInfo("toy", InputSpec((1, 8, 8)), 3)


class Constant(Defense):
    """Always class 0."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor([[1.0, 0.0, 0.0]], dtype=x.dtype).repeat(len(x), 1)


class NaNWhereBright(Defense):
    """Not a number where the first value rises above 1/2, else the more class 1 the brighter the last value."""

    def forward(self, x: Tensor) -> Tensor:
        last = x.flatten(1)[:, -1]
        rest = torch.stack([1 - last, last - 0.5, torch.zeros_like(last)], 1)
        return torch.where(x[:, 0, :1, 0] > 0.5, torch.nan, rest)
