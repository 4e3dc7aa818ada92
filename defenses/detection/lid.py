"""Local intrinsic dimensionality of the features in every layer (Ma et al. 2018)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bench.contracts.defense import Card, Claim, Defense
from bench.contracts.detector import Detector
from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo
from defenses.parts.detection import LogisticScore, examples_for, halves, in_batches
from defenses.parts.features import Features

if TYPE_CHECKING:
    from bench.training.recipe import TrainingRun


class LID(Detector):
    """The local intrinsic dimensionality at x in every stage of the network, weighed by logistic regression.

    Of the distances d_1 ≤ … ≤ d_k to the k nearest of a minibatch of clean images it is the maximum-likelihood
    estimate -1 / mean(log d_i/d_k). The paper draws the minibatch anew; here it is kept with the weights, so that a
    score does not depend on a draw. The regression is fitted on adversarial images that PGD finds for the classifier,
    with clean and noisy ones on the other side, from training images that are not kept.

    Args:
        data: of the images.
        minibatch: clean images that x is compared with.
        neighbours: k, of the nearest among them.
    """

    version = 1
    kinds = ("image",)
    known: Tensor
    card = Card(
        title="Local intrinsic dimensionality",
        summary=(
            "In every layer the distances to the nearest clean images say how many dimensions the data have around x. "
            "A logistic regression on these numbers rejects what looks adversarial. "
            "Adversarial images were thought to lie where neighbours fill more dimensions. "
            "Athalye et al. 2018 attack the classifier alone, for a high-confidence error. "
            "The detector accepts most of what they find."
        ),
        paper="Ma, Li, Wang, Erfani, Wijewickrema, Schoenebeck, Song, Houle, Bailey 2018, "
        "Characterizing Adversarial Subspaces Using Local Intrinsic Dimensionality",
        url="https://arxiv.org/abs/1801.02613",
        family="detector",
        tags=("deterministic", "differentiable", "rejects inputs"),
        breaks=(Claim("cifar10", "linf 0.031", None, 5.0, "high-confidence PGD", "Athalye et al. 2018, table 1"),),
    )

    def __init__(self, data: DataInfo, minibatch: int = 100, neighbours: int = 20) -> None:
        super().__init__(data)
        if not 2 <= neighbours <= minibatch:
            raise InputError(f"lid: neighbours {neighbours} is outside 2..{minibatch}, the minibatch")
        self.neighbours = neighbours
        self.register_buffer("known", torch.zeros(minibatch, *data.shape))

    def guard(self, defense: Defense) -> None:
        """Find the stages, each of which gives one number."""
        super().guard(defense)
        self.features = Features(defense)
        self.regression = LogisticScore(len(self.features.stages))

    def measured(self, x: Tensor) -> Tensor:
        """The dimensionality at x in each stage, ``(N, stages)``."""
        _, of_x = self.features.read(self.guarded, x, self.features.stages)
        _, of_known = self.features.read(self.guarded, self.known, self.features.stages)
        each = [
            intrinsic_dimensionality(torch.cdist(one.flatten(1), two.flatten(1), compute_mode=_EXACT), self.neighbours)
            for one, two in zip(of_x, of_known, strict=True)
        ]
        return torch.stack(each, 1)

    def detect(self, x: Tensor) -> Tensor:
        """Log odds of being adversarial; ``(N,)``."""
        odds: Tensor = self.regression(self.measured(x))
        return odds

    def fit(self, run: TrainingRun, classifier: Defense) -> None:
        """Keep a minibatch of one half of the training images; fit the regression to PGD's examples of the other."""
        kept, rest = halves(run)
        self.known.copy_(run.train.at(kept[torch.arange(len(self.known)) % len(kept)]))
        examples = examples_for(run, classifier, rest)
        self.regression.fit_(in_batches(self.measured, examples.x), examples.labels)


#: The way of computing distances that is exact, and the same whatever the size of the batch.
_EXACT = "donot_use_mm_for_euclid_dist"


def intrinsic_dimensionality(distances: Tensor, k: int) -> Tensor:
    """-1 / mean(log d_i/d_k) over the k smallest of ``distances (N, m)``; ``(N,)``.

    Distances below 1e-6 count as such, and the mean as at most -1e-3: where all neighbours are equally far away the
    estimate would be infinite.
    """
    nearest = distances.topk(k, dim=1, largest=False).values.clamp_min(1e-6)
    mean = (nearest / nearest.amax(1, keepdim=True)).log().mean(1)
    return -1 / mean.clamp_max(-1e-3)
