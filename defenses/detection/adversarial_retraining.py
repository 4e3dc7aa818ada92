"""Adversarial retraining: a second network that tells adversarial from genuine images (Gong et al. 2017)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bench.contracts.defense import Card, Defense
from bench.contracts.detector import Detector
from bench.contracts.inputs import DataInfo
from defenses.parts.detection import binary_loss, check_source, joint_examples, log_odds, minimise_detector, two_way

if TYPE_CHECKING:
    from bench.training.recipe import TrainingRun


class AdversarialRetraining(Detector):
    """A network with two logits, genuine and adversarial, trained on one source of perturbation or on all four.

    Half of what it sees are training images, half targeted adversarial images of the classifier, made anew in every
    batch, in the setting of equal perturbation of Ozbulak et al. 2020: along the gradient of cross-entropy (ce), its
    sign (ce_sign), one logit (logit) or the multi-target logit loss (m_logit). With ``joint`` a quarter each. Their
    networks start from weights of ImageNet; here they start from nothing.

    Args:
        data: decides the architecture.
        loss: ce, ce_sign, logit, m_logit or joint.
        network: another architecture by its name (``defenses.parts.nets``).
    """

    version = 1
    kinds = ("image",)
    card = Card(
        title="Adversarial retraining, two classes",
        summary=(
            "A second network reads the image and says whether it is genuine or adversarial. "
            "It learns from adversarial images that were made for the classifier. "
            "Perturbations were seen to have patterns that a network finds easily, even those of another attack. "
            "Carlini & Wagner 2017 attack both networks at once. "
            "What they find looks genuine to one and wrong to the other."
        ),
        paper="Gong, Wang, Ku 2017, Adversarial and Clean Data Are Not Twins",
        url="https://arxiv.org/abs/1704.04960",
        family="detector",
        tags=("deterministic", "differentiable", "rejects inputs"),
    )

    def __init__(self, data: DataInfo, loss: str = "joint", network: str = "auto") -> None:
        super().__init__(data)
        check_source(loss, ("joint",), "adversarial-retraining")
        self.loss, self.network = loss, network
        self.reader = two_way(data, network)

    def detect(self, x: Tensor) -> Tensor:
        """Log odds of being adversarial; ``(N,)``."""
        return log_odds(self.reader(x))

    def fit(self, run: TrainingRun, classifier: Defense) -> None:
        """Cross-entropy on training images and as many targeted adversarial images of the classifier."""

        def loss(x: Tensor, y: Tensor) -> Tensor:
            x_adv = joint_examples(classifier, x, y, run.threat, self.loss)
            return binary_loss(self.reader(torch.cat([x, x_adv])))

        minimise_detector(run, "reader of images", self.reader, loss, self.network)
