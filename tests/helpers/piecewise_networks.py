"""Small piecewise linear networks, for the search in activation patterns and for the proofs."""

from __future__ import annotations

import itertools

import torch
from registered import formula
from torch import Tensor, nn

from bench.contracts.defense import BareModel, Defense
from bench.contracts.inputs import DataInfo, InputSpec


def defense_of(model: nn.Module, shape: tuple[int, ...], classes: int) -> Defense:
    """The model as a defense that can be attacked."""
    return BareModel(model.eval().requires_grad_(False), DataInfo("pieces", InputSpec(shape), classes)).eval()


def perceptron(draw: torch.Generator, *sizes: int, slope: float = 0.0) -> nn.Sequential:
    """Layers of the given sizes with random weights, whose first kinks meet near the middle of the box."""
    layers: list[nn.Module] = [nn.Flatten()]
    for number, (before, after) in enumerate(itertools.pairwise(sizes)):
        layer = nn.Linear(before, after).requires_grad_(False)
        layer.weight.copy_(torch.randn(after, before, generator=draw) * (2 / before) ** 0.5)
        layer.bias.copy_(-0.5 * layer.weight.sum(1) if number == 0 else 0.1 * torch.randn(after, generator=draw))
        layers += [layer, nn.LeakyReLU(slope) if slope else nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Images(nn.Module):
    """A convolution, a pooling and two layers by formula, for images of any size; with ``norm`` a batch norm too."""

    def __init__(self, channels: int, size: int, norm: bool = False) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(channels, 2, 4, stride=4), nn.MaxPool2d(2)
        self.norm = nn.BatchNorm2d(2) if norm else nn.Identity()
        self.hidden, self.output = nn.Linear(2 * (size // 8) ** 2, 12), nn.Linear(12, 4)
        layers: tuple[nn.Conv2d | nn.Linear, ...] = (self.conv, self.hidden, self.output)
        for number, layer in enumerate(layers):
            weight, bias = layer.weight, layer.bias
            assert bias is not None
            weight.data.copy_(3 * formula(*weight.shape, seed=float(number)) / weight[0].numel() ** 0.5)
            bias.data.copy_(-0.5 * weight.flatten(1).sum(1) if number == 0 else 0 * bias)

    def forward(self, x: Tensor) -> Tensor:
        z = self.pool(torch.relu(self.norm(self.conv(x)))).flatten(1)
        logits: Tensor = self.output(torch.relu(self.hidden(z)))
        return logits
