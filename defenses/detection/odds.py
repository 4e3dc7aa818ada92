"""The odds are odd: how much more do the logits change under noise than those of clean images? (Roth et al. 2019)"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bench.contracts.defense import Card, Claim, Defense
from bench.contracts.detector import Detector
from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo

if TYPE_CHECKING:
    from bench.training.recipe import TrainingRun


class Odds(Detector):
    """The largest z-score of how a pair of logits moves under noise.

    For the predicted class y and every other class z, the log odds f_z - f_y at x + η minus those at x, on average over
    Gaussian η, are compared with mean and spread of the same number over clean training images that are predicted as y.
    The paper draws 256 times; below 16 pixels it is 32 here, for the cost of every attack is in proportion.

    Args:
        data: decides the default of ``samples``.
        samples: draws of the noise in one score; 0: 256, below 16 pixels 32.
        sigma: standard deviation of the noise on the scale of the box; the paper's 30 grey levels of 255.
    """

    version = 1
    kinds = ("image",)
    randomized = True
    trains_in_ball = False
    mean: Tensor
    std: Tensor
    card = Card(
        title="The odds are odd",
        summary=(
            "Noise is added to the image and the change of every log odds is compared with that of clean images. "
            "An input is rejected when some pair of classes moves more than it should. "
            "Adversarial images were seen to fall back to their class under noise, and the test needs no training. "
            "Tramer et al. 2020 match the logits of a clean image of another class, averaged over the noise. "
            "Nothing is left of the detector; "
            "on digits (75 images) it sees only what lies far beyond the boundary: after 40 steps of PGD to the end, "
            "AUROC 0.93 at eps 0.2, where the margin is 5.3 and moves by 1.8 under noise, and 0.46 at eps 0.1, where "
            "it is 1.6 and moves by 0.7, less than those of clean images (8.6, largest move 1.4); "
            "stopped at the first success it has 0.35 and 0.20: such points look steadier than clean ones."
        ),
        paper="Roth, Kilcher, Hofmann 2019, The Odds are Odd: A Statistical Test for Detecting Adversarial Examples",
        url="https://arxiv.org/abs/1902.04818",
        family="detector",
        tags=("randomised", "differentiable", "rejects inputs"),
        breaks=(
            Claim("cifar10", "linf", None, 16.3, "logit matching", "Tramer et al. 2020"),
            Claim("cifar10", "linf", None, 0.0, "logit matching, mean of 40 draws", "Tramer et al. 2020"),
        ),
    )

    def __init__(self, data: DataInfo, samples: int = 0, sigma: float = 30 / 255) -> None:
        super().__init__(data)
        if samples < 0:
            raise InputError(f"odds: samples {samples} must be at least 1, or 0 for the default")
        if sigma <= 0:
            raise InputError(f"odds: sigma {sigma} must be above 0")
        self.samples = samples or (32 if min(data.shape[1:]) < 16 else 256)
        self.sigma = sigma
        self.register_buffer("mean", torch.zeros(data.num_classes, data.num_classes))
        self.register_buffer("std", torch.ones(data.num_classes, data.num_classes))

    def moves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The predicted class y ``(N,)``, and how far f_z - f_y moves on average for every z; ``(N, K)``, 0 at y."""
        logits = self.guarded(x)
        y = logits.argmax(1)
        noise = (
            self.sigma
            * (self.data.input.high - self.data.input.low)
            * torch.randn(self.samples, *x.shape, dtype=x.dtype, device=x.device)
        )
        noisy: Tensor = self.guarded((x + noise).flatten(0, 1)).view(self.samples, len(x), -1).mean(0)
        moved = noisy - logits
        return y, moved - moved.gather(1, y[:, None])

    def detect(self, x: Tensor) -> Tensor:
        """The largest z-score over the classes other than the predicted one; ``(N,)``."""
        y, moved = self.moves(x)
        z = (moved - self.mean[y]) / self.std[y]
        return z.scatter(1, y[:, None], -torch.inf).amax(1)

    def fit(self, run: TrainingRun, classifier: Defense) -> None:
        """Mean and spread of every pair of classes over the training images; nothing is trained.

        A class that is predicted for fewer than two images has the numbers of all images.
        """
        predicted: list[Tensor] = []
        moved: list[Tensor] = []
        with torch.no_grad():
            for x, _ in run.train.batches(64):
                for kept, new in zip((predicted, moved), self.moves(x.to(run.device)), strict=True):
                    kept.append(new)
        y, changes = torch.cat(predicted), torch.cat(moved)
        for label in range(self.data.num_classes):
            mine = changes[y == label] if (y == label).sum() > 1 else changes
            self.mean[label] = mine.mean(0)
            self.std[label] = mine.std(0).clamp_min(1e-6)
