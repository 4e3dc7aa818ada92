"""An ensemble of detectors: what any of them finds suspicious is rejected."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bench.contracts.defense import Card, Defense
from bench.contracts.detector import Detector
from bench.contracts.errors import InputError, did_you_mean
from bench.contracts.inputs import DataInfo
from defenses.detection.adversarial_retraining import AdversarialRetraining
from defenses.detection.feature_squeezing import FeatureSqueezing
from defenses.detection.inner_features import InnerFeatures
from defenses.detection.kernel_density import KernelDensity
from defenses.detection.lid import LID
from defenses.detection.magnet import MagNet
from defenses.detection.mahalanobis import Mahalanobis
from defenses.detection.outlier_class import OutlierClass
from defenses.parts.detection import Standardised, in_batches

if TYPE_CHECKING:
    from bench.training.recipe import TrainingRun

#: What an ensemble can be made of: the deterministic detectors, by the names under which they are registered.
MEMBERS: dict[str, Callable[[DataInfo], Detector]] = {
    "adversarial-retraining": AdversarialRetraining,
    "feature-squeezing": FeatureSqueezing,
    "inner-features": InnerFeatures,
    "kernel-density": KernelDensity,
    "lid": LID,
    "magnet": MagNet,
    "mahalanobis": Mahalanobis,
    "outlier-class": OutlierClass,
}


class DetectorEnsemble(Detector):
    """The largest of several detectors' scores, each in units of its spread on clean validation images.

    Args:
        data: of the images.
        members: names with + between them: adversarial-retraining, feature-squeezing, inner-features, kernel-density,
            lid, magnet, mahalanobis, outlier-class, each with its defaults.
    """

    version = 1
    kinds = ("image",)
    card = Card(
        title="Ensemble of detectors",
        summary=(
            "Several detectors score the image, and the most suspicious of them decides. "
            "Each is measured in units of its spread on clean images. "
            "Detectors that look at different things were thought to leave no place where all are content. "
            "He et al. 2017 attack all members at once and find such places with little more distortion. "
            "An ensemble of weak defenses is not strong."
        ),
        paper="He, Wei, Chen, Carlini, Song 2017, "
        "Adversarial Example Defenses: Ensembles of Weak Defenses are not Strong",
        url="https://arxiv.org/abs/1706.04701",
        family="detector",
        tags=("deterministic", "differentiable", "rejects inputs"),
    )

    def __init__(
        self, data: DataInfo, members: str = "feature-squeezing+kernel-density+mahalanobis+adversarial-retraining"
    ) -> None:
        super().__init__(data)
        names = members.split("+")
        for name in names:
            if name not in MEMBERS:
                raise InputError(f"detector-ensemble: member {name!r} does not exist{did_you_mean(name, MEMBERS)}")
        if len(set(names)) < len(names):
            raise InputError(f"detector-ensemble: members {members!r} names one twice")
        self.members = nn.ModuleList(MEMBERS[name](data) for name in names)
        self.standardised = Standardised(len(names))

    def guard(self, defense: Defense) -> None:
        """Put every member in front of the defense."""
        super().guard(defense)
        for member in self._members():
            member.guard(defense)

    def measured(self, x: Tensor) -> Tensor:
        """Every member's score, ``(N, members)``."""
        return torch.stack([member.detect(x) for member in self._members()], 1)

    def detect(self, x: Tensor) -> Tensor:
        """The largest standardised score; ``(N,)``."""
        scores: Tensor = self.standardised(self.measured(x))
        return scores.amax(1)

    def fit(self, run: TrainingRun, classifier: Defense) -> None:
        """Every member by its own recipe, in turn; then the spread of the scores on the validation images."""
        for member in self._members():
            if member.has_recipe:
                member.fit(run, classifier)
        x = torch.cat([part for part, _ in run.validation.batches(256)]).to(run.device)
        self.eval()
        self.standardised.fit_(in_batches(self.measured, x))

    def _members(self) -> list[Detector]:
        return [member for member in self.members if isinstance(member, Detector)]
