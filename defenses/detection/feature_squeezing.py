"""Feature squeezing: a detector that compares predictions before and after squeezing (Xu et al. 2018)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.contracts.defense import Card, Defense
from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo
from defenses.parts.nets import classifier_for
from defenses.parts.recipes import train_classifier

if TYPE_CHECKING:
    from bench.training.recipe import TrainingRun


class FeatureSqueezing(Defense):
    """A naturally trained network with a detector: how far does its prediction move when the image is squeezed?

    The squeezers are a lower bit depth and, from 16 pixels on, a 2×2 median filter: on digits of 8×8 pixels,
    whose strokes are one or two pixels wide, the filter takes clean accuracy from 99 % to 73 %, which leaves the
    detector blind. The transform is the identity: squeezed images serve detection only.

    Args:
        data: decides the architecture.
        bits: per channel after squeezing; default 5 for colour as in the paper, BITS_GREY for grey.
        network: another architecture by its name (``defenses.parts.nets``).
    """

    version = 1
    kinds = ("image",)
    trains_in_ball = False
    card = Card(
        title="Feature squeezing",
        summary=(
            "The network classifies the image, a version with fewer bits, and a median-filtered version. "
            "An input is rejected when the predictions differ by more than a threshold in L1. "
            "Squeezing was thought to leave clean images alone and to undo adversarial perturbations. "
            "An attack that optimises the classifier and the detector together finds inputs that fool both. "
            "He et al. 2017 did so with little more distortion."
        ),
        paper="Xu, Evans, Qi 2018, Feature Squeezing: Detecting Adversarial Examples in Deep Neural Networks",
        url="https://arxiv.org/abs/1704.01155",
        family="detector",
        tags=("deterministic", "differentiable", "rejects inputs"),
    )

    def __init__(self, data: DataInfo, bits: int | None = None, network: str = "auto") -> None:
        super().__init__(data)
        self.bits = (5 if data.shape[0] == 3 else BITS_GREY) if bits is None else bits
        if not 1 <= self.bits <= 8:
            raise InputError(f"feature-squeezing: bits {bits} is outside 1..8")
        self.filter = min(data.shape[1:]) >= 16
        self.network = network
        self.classifier = classifier_for(data, network)

    def detect(self, x: Tensor) -> Tensor:
        """The largest L1 distance, 0 to 2, between predictions for x and for a squeezed x; ``(N,)``."""
        prediction = self.classifier(x).softmax(1)
        squeezed = [reduce_bit_depth(x, self.bits)]
        if self.filter:
            squeezed.append(median_2x2(x))
        distances = [(self.classifier(z).softmax(1) - prediction).abs().sum(1) for z in squeezed]
        return torch.stack(distances).amax(0)

    def fit(self, run: TrainingRun) -> None:
        """Cross-entropy on clean images."""
        train_classifier(run, self, self.network)


#: Bits for grey images: the fewest that leave clean validation accuracy on digits within a point (1 bit costs five).
BITS_GREY = 2


def reduce_bit_depth(x: Tensor, bits: int) -> Tensor:
    """``x`` in [0, 1] rounded to ``2**bits`` levels; the gradient is that of the identity (straight-through)."""
    levels = 2**bits - 1
    rounded: Tensor = (x * levels).round() / levels
    return x + (rounded - x).detach()


def median_2x2(x: Tensor) -> Tensor:
    """Each pixel replaced by the upper median of it and its neighbours above and to the left; same shape.

    Agrees with ``scipy.ndimage.median_filter(size=2)``: of four values the third smallest, borders
    reflected.
    """
    padded = F.pad(x, (1, 0, 1, 0), mode="replicate")
    windows = padded.unfold(2, 2, 1).unfold(3, 2, 1).flatten(4)
    return windows.kthvalue(3, dim=4).values
