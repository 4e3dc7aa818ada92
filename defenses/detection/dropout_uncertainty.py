"""Dropout uncertainty, alone and with the kernel density (Feinman et al. 2017)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.contracts.defense import Card, Defense
from bench.contracts.detector import Detector
from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo
from defenses.detection.kernel_density import KernelDensity, log_density
from defenses.parts.detection import LogisticScore, examples_for, halves, in_batches
from defenses.parts.features import Features

if TYPE_CHECKING:
    from bench.training.recipe import TrainingRun

_PAPER = "Feinman, Curtin, Shintre, Gardner 2017, Detecting Adversarial Samples from Artifacts"
_URL = "https://arxiv.org/abs/1703.00410"


def check_dropout(who: str, rate: float, passes: int) -> None:
    """Raise :class:`InputError` for a rate or a number of passes that no variance can be taken of."""
    if not 0 < rate < 1:
        raise InputError(f"{who}: rate {rate} must lie between 0 and 1")
    if passes < 2:
        raise InputError(f"{who}: passes {passes} must be at least 2")


def uncertainty(hidden: Tensor, weight: Tensor, bias: Tensor | None, rate: float, passes: int) -> Tensor:
    """Variance ``(N,)`` of the softmax over ``passes`` draws of dropout on ``hidden (N, d)``, the mean over classes."""
    dropped = F.dropout(hidden.expand(passes, *hidden.shape), rate, training=True)
    return F.linear(dropped, weight, bias).softmax(2).var(0, correction=0).mean(1)


class DropoutUncertainty(Detector):
    """How much do the probabilities vary when units of the last hidden layer are dropped?

    The mean over classes of the variance over 50 passes. The paper's networks have dropout layers and are trained with
    them; here the classifier may be any, so units are dropped before its last linear layer alone, which makes the
    passes as cheap as that layer. Every score draws its own units.

    Args:
        data: of the images.
        rate: share of the units that are dropped.
        passes: over which the variance is taken.
    """

    version = 1
    kinds = ("image",)
    randomized = True
    trains_in_ball = False
    card = Card(
        title="Dropout uncertainty",
        summary=(
            "An image is rejected when the prediction varies much under dropout. "
            "The variance approximates the uncertainty of a Gaussian process (Gal & Ghahramani 2016). "
            "Adversarial images were thought to lie where the network has seen nothing and is therefore uncertain. "
            "Carlini & Wagner 2017 found it the hardest of ten detectors to evade, and evaded it all the same. "
            "Their attack takes the mean loss over drawn networks."
        ),
        paper=_PAPER,
        url=_URL,
        family="detector",
        tags=("randomised", "differentiable", "rejects inputs"),
    )

    def __init__(self, data: DataInfo, rate: float = 0.5, passes: int = 50) -> None:
        super().__init__(data)
        check_dropout("dropout-uncertainty", rate, passes)
        self.rate, self.passes = rate, passes

    def guard(self, defense: Defense) -> None:
        """Find the last hidden layer."""
        super().guard(defense)
        self.features = Features(defense)

    def detect(self, x: Tensor) -> Tensor:
        """The mean variance of the probabilities; ``(N,)``."""
        _, (hidden,) = self.features.read(self.guarded, x, (self.features.last,))
        head = self.features.linear
        return uncertainty(hidden, head.weight, head.bias, self.rate, self.passes)


class DensityAndUncertainty(KernelDensity):
    """Kernel density and dropout uncertainty, combined by logistic regression.

    The regression is fitted on adversarial images that PGD finds for the classifier, with clean and noisy ones on the
    other side, from training images that are not among the points of the density. It sees the density and the logarithm
    of the variance, whose values span many orders.

    Args:
        data: of the images.
        points: training images kept of each class for the density.
        bandwidth: of its kernel; 0: the most likely one.
        rate: share of the hidden units that dropout drops.
        passes: over which the variance is taken.
    """

    version = 1
    kinds = ("image",)
    randomized = True
    trains_in_ball = True
    card = Card(
        title="Kernel density and dropout uncertainty",
        summary=(
            "A logistic regression on the kernel density of the last hidden layer and on the dropout uncertainty. "
            "It learns from adversarial images of PGD. "
            "Features off the manifold and an uncertain network were thought to be complementary signs. "
            "The same attacks that evade each of them evade both. "
            "Carlini & Wagner 2017 count it among the ten detectors that do not detect."
        ),
        paper=_PAPER,
        url=_URL,
        family="detector",
        tags=("randomised", "differentiable", "rejects inputs"),
    )

    def __init__(
        self, data: DataInfo, points: int = 40, bandwidth: float = 0.0, rate: float = 0.5, passes: int = 50
    ) -> None:
        super().__init__(data, points, bandwidth)
        check_dropout("density-and-uncertainty", rate, passes)
        self.rate, self.passes = rate, passes
        self.regression = LogisticScore(2)

    def measured(self, x: Tensor) -> Tensor:
        """Minus log density and log variance, ``(N, 2)``."""
        head = self.features.linear
        logits, (hidden,) = self.features.read(self.guarded, x, (self.features.last,))
        density = log_density(hidden, self.points[logits.argmax(1)], self.bandwidth)
        variance = uncertainty(hidden, head.weight, head.bias, self.rate, self.passes)
        return torch.stack([-density, variance.clamp_min(1e-12).log()], 1)

    def detect(self, x: Tensor) -> Tensor:
        """Log odds of being adversarial; ``(N,)``."""
        odds: Tensor = self.regression(self.measured(x))
        return odds

    def fit(self, run: TrainingRun, classifier: Defense) -> None:
        """Keep points from one half of the training images; fit the regression to PGD's examples of the other."""
        known, rest = halves(run)
        self.keep_(run, classifier, known)
        examples = examples_for(run, classifier, rest)
        self.regression.fit_(in_batches(self.measured, examples.x), examples.labels)
