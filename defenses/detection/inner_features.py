"""A small network on the inner features of the classifier (Metzen et al. 2017)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bench.contracts.defense import Card, Defense
from bench.contracts.detector import Detector
from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo
from defenses.parts.detection import binary_loss, examples_of_pgd, log_odds, minimise_detector
from defenses.parts.features import Features

if TYPE_CHECKING:
    from bench.training.recipe import TrainingRun


class InnerFeatures(Detector):
    """A convolutional network with two logits that reads one stage of the classifier.

    The paper attaches it to one of the residual stages of a ResNet, the second of which did best in the middle of the
    network; here it is the middle one of the stages that have places, or any. It learns from clean images and from as
    many that PGD finds for the classifier in every batch.

    Args:
        data: of the images.
        stage: number of the stage, from 0; -1: the middle one.
        width: channels of the small network.
    """

    version = 1
    kinds = ("image",)
    card = Card(
        title="Detector on inner features",
        summary=(
            "A small network branches off from the middle of the classifier and says whether the image is adversarial. "
            "It learns from adversarial images of the classifier, whose weights stay as they are. "
            "Perturbations are small in the image, but were seen to grow from layer to layer. "
            "Metzen et al. attack both at once, and train against that in turn. "
            "Carlini & Wagner 2017 evade it all the same."
        ),
        paper="Metzen, Genewein, Fischer, Bischoff 2017, On Detecting Adversarial Perturbations",
        url="https://arxiv.org/abs/1702.04267",
        family="detector",
        tags=("deterministic", "differentiable", "rejects inputs"),
    )

    def __init__(self, data: DataInfo, stage: int = -1, width: int = 32) -> None:
        super().__init__(data)
        if width < 1:
            raise InputError(f"inner-features: width {width} must be at least 1")
        self.stage, self.width = stage, width

    def guard(self, defense: Defense) -> None:
        """Find the stage, and make the network that fits it."""
        super().guard(defense)
        self.features = Features(defense)
        spatial = [layer for layer in self.features.stages if len(layer.shape) == 3]
        if not spatial:
            raise InputError("inner-features: the classifier has no convolutional stage to read")
        if not -1 <= self.stage < len(spatial):
            raise InputError(f"inner-features: stage {self.stage} is outside -1..{len(spatial) - 1}")
        self.layer = spatial[len(spatial) // 2 if self.stage == -1 else self.stage]
        layers: list[nn.Module] = []
        channels = self.layer.shape[0]
        for outputs in (self.width, 2 * self.width):
            layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
            channels = outputs
        self.reader = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 2)).eval()

    def detect(self, x: Tensor) -> Tensor:
        """Log odds of being adversarial; ``(N,)``."""
        _, (features,) = self.features.read(self.guarded, x, (self.layer,))
        return log_odds(self.reader(features))

    def fit(self, run: TrainingRun, classifier: Defense) -> None:
        """Cross-entropy on the features of training images and of as many that PGD finds."""

        def loss(x: Tensor, y: Tensor) -> Tensor:
            both = torch.cat([x, examples_of_pgd(classifier, x, y, run.threat)])
            with torch.no_grad():
                _, (features,) = self.features.read(classifier, both, (self.layer,))
            return binary_loss(self.reader(features))

        minimise_detector(run, "reader of features", self.reader, loss)
