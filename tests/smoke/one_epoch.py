"""A classifier for images of any size that is trained in seconds: what a smoke run puts before the attacks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import nn

from bench.contracts.defense import Card, Defense
from bench.contracts.inputs import DataInfo

if TYPE_CHECKING:
    from bench.training.recipe import TrainingRun


class OneEpoch(Defense):
    """Three strided convolutions and a linear layer, trained for one epoch."""

    version = 1
    trains_in_ball = False
    card = Card(title="One epoch", summary="A small convolutional network after one epoch.", family="undefended")

    def __init__(self, data: DataInfo) -> None:
        super().__init__(data)
        channels, height, width = data.input.shape
        layers: list[nn.Module] = []
        for width_out in (16, 32, 64):
            layers += [nn.Conv2d(channels, width_out, 3, 2, 1, bias=False), nn.BatchNorm2d(width_out), nn.ReLU()]
            channels, height, width = width_out, (height + 1) // 2, (width + 1) // 2
        layers += [nn.Flatten(), nn.Linear(channels * height * width, data.num_classes)]
        self.classifier = nn.Sequential(*layers)

    def fit(self, run: TrainingRun) -> None:
        run.minimise(
            "classifier", self.classifier, lambda x, y: F.cross_entropy(self.classifier(x), y),
            epochs=1, batch_size=128, lr=3e-3, optimizer="adam", policy="one-cycle",
        )  # fmt: skip
