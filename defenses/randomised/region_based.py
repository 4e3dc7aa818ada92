"""Region-based classification: a vote over a cube around the image (Cao & Gong 2017)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from bench.contracts.defense import Card, Defense
from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo
from defenses.parts.nets import classifier_for
from defenses.parts.recipes import natural_training
from defenses.parts.voting import UniformNoise, Vote

if TYPE_CHECKING:
    from bench.training.recipe import TrainingRun


class RegionBased(Defense):
    """A naturally trained network that is asked at random points of a cube around the image.

    The paper counts labels. Here probabilities are averaged instead, so that logits have more than a few values; the
    two agree but for ties and near-ties. g is the identity: the points are drawn inside f.

    Args:
        data: decides the architecture and the defaults.
        radius: half the side of the cube, in pixel units. Default: 0.02 from 16 pixels on (the paper, CIFAR-10),
            else SMALL_RADIUS.
        samples: points per image (the paper: 1000 and more, which no adaptive attack of a benchmark can afford).
            Default: 32 from 16 pixels on, else 8.
        network: another architecture by its name (``defenses.parts.nets``).
    """

    version = 1
    kinds = ("image",)
    trains_in_ball = False
    card = Card(
        title="Region-based classification",
        summary=(
            "The network classifies many points drawn uniformly from a small cube around the image, and their vote "
            "decides. "
            "Adversarial examples were observed to lie so close to the decision boundary that most of the cube "
            "around them still belongs to the true class. "
            "That held for attacks that stop as soon as one point is misclassified. "
            "He, Li and Song 2018 moved the whole neighbourhood across the boundary with a loss over several points "
            "of it (OptMargin). "
            "The vote is differentiable in the mean, so that averaging the gradient over the cube, or just going on "
            "to the border of the allowed ball, is enough."
        ),
        paper="Cao, Gong 2017, Mitigating Evasion Attacks to Deep Neural Networks via Region-based Classification",
        url="https://arxiv.org/abs/1709.05583",
        family="randomised",
        tags=("randomised", "differentiable", "voting"),
    )
    randomized = True

    def __init__(
        self, data: DataInfo, radius: float | None = None, samples: int | None = None, network: str = "auto"
    ) -> None:
        super().__init__(data)
        large = min(data.shape[1:]) >= 16
        if radius is None:
            radius = 0.02 if large else SMALL_RADIUS
        if samples is None:
            samples = 32 if large else 8
        if not 0 < radius <= 1:
            raise InputError(f"region-based: radius {radius} is outside (0, 1]")
        if samples < 1:
            raise InputError(f"region-based: samples {samples} must be at least 1")
        self.radius, self.samples, self.network = radius, samples, network
        self.classifier = Vote(nn.Sequential(UniformNoise(radius), classifier_for(data, network)), samples)

    def fit(self, run: TrainingRun) -> None:
        """Cross-entropy on clean images, without noise: the paper votes with a network that exists already."""
        natural_training(run, self.classifier, network=self.network)


#: Default radius below 16 pixels, by the paper's rule: the largest that costs no clean validation accuracy. On digits
#: 0.1, 0.2, 0.3 and 0.4 have 98.8, 98.8, 97.7 and 94.1 % with 8 samples (the network alone: 98.8 %).
SMALL_RADIUS = 0.2
