"""Defenses that defend nothing: each only hides the gradient of the classifier it wraps.

A suite that ranks one of them above the bare classifier measures obfuscation. None of them declares an
approximation, as an author who has not thought about attacks would not.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.contracts.defense import BareModel, Defense
from bench.contracts.inputs import DataInfo


class Cut(nn.Module):
    """A bare module whose forward pass leaves the graph: every gradient is missing."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x.detach())
        return logits


class Scaled(nn.Module):
    """Logits a thousand times too large: the cross-entropy underflows to 0 and so does its gradient."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = 1000 * self.model(x)
        return logits


class Quantised(Defense):
    """The input rounded to 3 bits: the gradient is 0 almost everywhere."""

    def __init__(self, model: nn.Module, data: DataInfo) -> None:
        super().__init__(data)
        self.classifier = model

    def transform(self, x: Tensor) -> Tensor:
        return torch.round(7 * x) / 7


class Noisy(Defense):
    """A little Gaussian noise on the input: each gradient and each answer differs from the last."""

    randomized = True

    def __init__(self, model: nn.Module, data: DataInfo, sigma: float = 0.02) -> None:
        super().__init__(data)
        self.classifier, self.sigma = model, sigma

    def transform(self, x: Tensor) -> Tensor:
        return x + self.sigma * torch.randn_like(x)


def canaries(model: nn.Module, data: DataInfo) -> dict[str, Defense]:
    """Every canary around ``model``, by name."""
    return {
        "cut": BareModel(Cut(model), data),
        "scaled": BareModel(Scaled(model), data),
        "quantised": Quantised(model, data),
        "noisy": Noisy(model, data),
    }
