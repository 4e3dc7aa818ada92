"""Noise layers, and a vote over several passes of a network that contains them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class UniformNoise(nn.Module):
    """Adds independent noise, uniform in ±``radius``, in evaluation mode; in training mode nothing is done."""

    def __init__(self, radius: float) -> None:
        super().__init__()
        self.radius = radius

    def forward(self, x: Tensor) -> Tensor:
        return x if self.training else x + self.radius * (2 * torch.rand_like(x) - 1)


class GaussianNoise(nn.Module):
    """Adds independent Gaussian noise of standard deviation ``std``, in training and in evaluation mode."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std = std

    def forward(self, x: Tensor) -> Tensor:
        return x + self.std * torch.randn_like(x)


class Vote(nn.Module):
    """The logarithm of the mean class probability over ``samples`` passes of a stochastic network.

    The argmax is that of the mean probability, and an attacker who averages over draws climbs exactly what decides.
    In training mode a single pass is made.

    Args:
        network: logits ``(N, K)`` from ``(N, C, H, W)``, each row with a draw of its own.
        samples: passes in evaluation mode, stacked into one batch.
    """

    def __init__(self, network: nn.Module, samples: int) -> None:
        super().__init__()
        self.network = network
        self.samples = samples

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            out: Tensor = self.network(x)
            return out
        logits = self.network(x.repeat(self.samples, 1, 1, 1))
        votes = logits.log_softmax(1).view(self.samples, len(x), logits.shape[1])
        mean: Tensor = votes.logsumexp(0) - math.log(self.samples)
        return mean
