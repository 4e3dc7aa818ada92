"""Kernel density of the last hidden layer: how common are such features in its class? (Feinman et al. 2017)"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bench.contracts.defense import Card, Defense
from bench.contracts.detector import Detector
from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo
from defenses.parts.detection import in_batches
from defenses.parts.features import Features

if TYPE_CHECKING:
    from bench.training.recipe import TrainingRun

#: Bandwidths tried, in units of the median distance between a validation image and the nearest point of its class.
GRID = torch.logspace(-1.5, 1.0, 26)


class KernelDensity(Detector):
    """Minus the log density of x's last hidden layer under training images of the predicted class.

    A Gaussian kernel density estimate per class. The bandwidth is the one that makes clean validation images most
    likely, as the paper chooses it (1.20 on MNIST, 0.26 on CIFAR-10). Of every class only the first ``points`` training
    images are kept, where the paper keeps all.

    Args:
        data: of the images.
        points: training images kept of each class.
        bandwidth: of the kernel; 0: the most likely one.
    """

    version = 1
    kinds = ("image",)
    trains_in_ball = False
    points: Tensor
    bandwidth: Tensor
    card = Card(
        title="Kernel density",
        summary=(
            "An image is rejected when the last hidden layer's features are rare among those of the predicted class. "
            "Rarity is a Gaussian kernel density estimate over training images. "
            "Adversarial images were thought to leave the manifold on which the features of clean ones lie. "
            "Carlini & Wagner 2017 add the density to the loss of their attack. "
            "The images it finds are as dense as clean ones and hardly further away."
        ),
        paper="Feinman, Curtin, Shintre, Gardner 2017, Detecting Adversarial Samples from Artifacts",
        url="https://arxiv.org/abs/1703.00410",
        family="detector",
        tags=("deterministic", "differentiable", "rejects inputs"),
    )

    def __init__(self, data: DataInfo, points: int = 40, bandwidth: float = 0.0) -> None:
        super().__init__(data)
        if points < 1:
            raise InputError(f"kernel-density: points {points} must be at least 1")
        if bandwidth < 0:
            raise InputError(f"kernel-density: bandwidth {bandwidth} must not be negative")
        self.kept, self.wanted = points, bandwidth

    def guard(self, defense: Defense) -> None:
        """Find the last hidden layer, and make room for the points."""
        super().guard(defense)
        self.features = Features(defense)
        size = self.features.last.size
        self.register_buffer("points", torch.zeros(self.data.num_classes, self.kept, size))
        self.register_buffer("bandwidth", torch.tensor(self.wanted or 1.0))

    def detect(self, x: Tensor) -> Tensor:
        """Minus the log density in the predicted class; ``(N,)``."""
        logits, (hidden,) = self.features.read(self.guarded, x, (self.features.last,))
        return -log_density(hidden, self.points[logits.argmax(1)], self.bandwidth)

    def fit(self, run: TrainingRun, classifier: Defense) -> None:
        """Keep points of every class and choose the bandwidth; nothing is trained."""
        self.keep_(run, classifier, torch.arange(len(run.train)))

    def keep_(self, run: TrainingRun, classifier: Defense, rows: Tensor) -> None:
        """Keep points from the training images ``rows``, and the bandwidth that suits the validation images.

        A class with fewer images has them several times; one with none has images of all classes.
        """
        with torch.no_grad():
            for label in range(self.data.num_classes):
                mine = rows[run.train.y[rows] == label]
                mine = mine if len(mine) else rows
                chosen = mine[torch.arange(self.kept) % len(mine)]
                x = run.train.at(chosen).to(run.device)
                self.points[label] = in_batches(self._hidden(classifier), x)
            if self.wanted:
                return
            x = torch.cat([part for part, _ in run.validation.batches(256)]).to(run.device)
            hidden = in_batches(self._hidden(classifier), x)
            labels = in_batches(classifier, x).argmax(1)
            near = self.points[labels]
            typical = distances(hidden, near).amin(1).median().clamp_min(1e-6)
            likely = torch.stack([log_density(hidden, near, typical * share).mean() for share in GRID])
            self.bandwidth.copy_(typical * GRID[likely.argmax().cpu()])

    def _hidden(self, classifier: Defense) -> Callable[[Tensor], Tensor]:
        return lambda x: self.features.read(classifier, x, (self.features.last,))[1][0]


def distances(x: Tensor, points: Tensor) -> Tensor:
    """Euclidean distances ``(N, m)`` of ``x (N, d)`` to its own ``points (N, m, d)``."""
    return torch.cdist(x[:, None], points, compute_mode="donot_use_mm_for_euclid_dist").squeeze(1)


def log_density(x: Tensor, points: Tensor, bandwidth: Tensor) -> Tensor:
    """Log of the Gaussian kernel density ``(N,)`` at ``x (N, d)`` of its own ``points (N, m, d)``."""
    m, d = points.shape[1:]
    squared = (x[:, None] - points).square().sum(2)
    norm = math.log(m) + d * (bandwidth.log() + 0.5 * math.log(2 * math.pi))
    return (-squared / (2 * bandwidth**2)).logsumexp(1) - norm
