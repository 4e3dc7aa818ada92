"""Median smoothing as an input transformation (Xu et al. 2018)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from bench.contracts.defense import Approximation, Card, Defense
from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo
from defenses.parts.nets import classifier_for
from defenses.parts.recipes import existing_classifier, train_classifier

if TYPE_CHECKING:
    from bench.training.recipe import TrainingRun


class MedianSmoothing(Defense):
    """g replaces every pixel by the median of a square window around it.

    Autograd differentiates it: the gradient goes to the pixel that was chosen.

    Args:
        data: decides the architecture.
        size: side of the window in pixels, at least 2. Default: 2, with which Xu et al. 2018 smooth CIFAR-10 and
            ImageNet, and which leaves more of digits of 8×8 than 3 (98.2 and 97.4 % clean validation accuracy).
        network: another architecture by its name (``defenses.parts.nets``). Xu et al. use a DenseNet on CIFAR-10.
    """

    version = 1
    kinds = ("image",)
    trains_in_ball = False
    card = Card(
        title="Median smoothing",
        summary=(
            "Every pixel is replaced by the median of its neighbourhood before the image is classified. "
            "A median drops outliers and keeps edges, which was thought to undo sparse and pixel-sized changes. "
            "It is an order statistic, so it has an exact derivative, but only towards one pixel of each window. "
            "An attacker who differentiates through it, or takes the identity instead, makes perturbations that are "
            "smooth enough to pass the filter. "
            "On small images it also removes strokes that are one pixel wide, and accuracy with them."
        ),
        paper="Xu, Evans, Qi 2018, Feature Squeezing: Detecting Adversarial Examples in Deep Neural Networks",
        url="https://arxiv.org/abs/1704.01155",
        family="input transformation",
        tags=("deterministic", "differentiable", "input transformation"),
    )

    def __init__(self, data: DataInfo, size: int = 2, network: str = "auto") -> None:
        super().__init__(data)
        self.weights_of = existing_classifier(data)
        if not 2 <= size <= min(data.shape[1:]):
            raise InputError(f"median-smoothing: size {size} is outside 2..{min(data.shape[1:])}")
        self.size = size
        self.network = network
        self.classifier = classifier_for(data, network)

    def transform(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to the same shape (:func:`median`)."""
        return median(x, self.size)

    def approximations(self) -> dict[str, Approximation]:
        """``mean``: the mean of the window, whose derivative reaches all its pixels; ``identity``."""
        return {"mean": Approximation(lambda x: _mean(x, self.size)), "identity": Approximation(lambda x: x)}

    def fit(self, run: TrainingRun) -> None:
        """Cross-entropy on smoothed images."""
        train_classifier(run, self, self.network)


def median(x: Tensor, size: int) -> Tensor:
    """The median of the ``size``×``size`` window around each pixel, the upper one of an even number; same shape.

    Borders are repeated. Agrees with ``scipy.ndimage.median_filter(mode="nearest")``, also where the window of
    even size reaches one pixel further up and left than down and right.
    """
    windows = _padded(x, size).unfold(2, size, 1).unfold(3, size, 1).flatten(4)
    return windows.kthvalue(size * size // 2 + 1, dim=4).values


def _mean(x: Tensor, size: int) -> Tensor:
    return F.avg_pool2d(_padded(x, size), size, stride=1)


def _padded(x: Tensor, size: int) -> Tensor:
    before, after = size // 2, (size - 1) // 2
    return F.pad(x, (before, after, before, after), mode="replicate")
