"""Sounds for tests: a data set of short waveforms in [-1, 1], and a small network for them, both as plugins."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.contracts.defense import Defense
from bench.contracts.inputs import DataInfo, InputSpec
from bench.data.splits import Data, Split

if TYPE_CHECKING:
    from bench.training.recipe import TrainingRun

LENGTH = 64
INFO = DataInfo("tones", InputSpec((1, LENGTH), -1.0, 1.0, "waveform"), 3)


def tones() -> Data:
    """Low tones, high tones and rising chirps of random phase and loudness under some noise."""
    draws = torch.Generator().manual_seed(0)
    train, validation, test = (_split(part, n, draws) for part, n in (("train", 150), ("validation", 60), ("test", 60)))
    return Data(INFO, ["low", "high", "chirp"], train, validation, test)


def _split(part: str, n: int, draws: torch.Generator) -> Split:
    y = torch.arange(n) % 3
    phase, loudness = torch.rand(2, n, 1, generator=draws)
    t = torch.arange(LENGTH) / LENGTH
    cycles = torch.stack([6 * t, 9 * t, 5 * t + 5 * t**2])[y]
    waves = (0.2 + 0.6 * loudness) * torch.sin(2 * math.pi * (cycles + phase))
    waves = waves + 0.1 * torch.randn(n, LENGTH, generator=draws)
    return Split(waves.clamp(-1, 1)[:, None], y, [f"{part}/{i:03d}" for i in range(n)])


class Filters(Defense):
    """Two convolutions in time and the mean over it, behind a transform that averages neighbouring samples."""

    version = 1

    def __init__(self, data: DataInfo, width: int = 8, smooth: bool = True) -> None:
        super().__init__(data)
        self.smooth = smooth
        channels, _ = data.shape
        self.classifier = nn.Sequential(
            nn.Conv1d(channels, width, 9, stride=2, padding=4),
            nn.ReLU(),
            nn.Conv1d(width, 2 * width, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.AdaptiveAvgPool1d(4),
            nn.Flatten(),
            nn.Linear(8 * width, data.num_classes),
        )

    def transform(self, x: Tensor) -> Tensor:
        return F.avg_pool1d(x, 3, stride=1, padding=1) if self.smooth else x

    def fit(self, run: TrainingRun) -> None:
        """Cross-entropy."""

        def loss(x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(self(x), y)

        run.minimise("classifier", self.classifier, loss, epochs=20, batch_size=50, lr=0.1)
