"""Adversarial retraining with a class of its own for adversarial images (Grosse et al. 2017)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.contracts.defense import Card, Defense
from bench.contracts.detector import Detector
from bench.contracts.inputs import DataInfo
from defenses.parts.detection import check_source, joint_examples, minimise_detector
from defenses.parts.nets import classifier_for

if TYPE_CHECKING:
    from bench.training.recipe import TrainingRun


class OutlierClass(Detector):
    """A network with K + 1 classes, the last of which is for adversarial images; the score is the log odds of it.

    It is trained on the labels of the training images, and on as many adversarial images of the classifier behind it,
    made anew in every batch (see ``adversarial-retraining``). In the paper this network is the classifier as well;
    here the one behind it classifies, so that it can be any. An attack then has to fool two networks instead of one.

    Args:
        data: decides the architecture.
        loss: source of the adversarial images: ce, ce_sign, logit, m_logit or joint.
        network: another architecture by its name (``defenses.parts.nets``).
    """

    version = 1
    kinds = ("image",)
    card = Card(
        title="Adversarial retraining, a class for outliers",
        summary=(
            "A network learns the classes of the data and one more, for adversarial images. "
            "What it puts into the additional class is rejected. "
            "Adversarial images were seen to come from another distribution, which a class of its own should catch. "
            "Carlini & Wagner 2017 attack the K + 1 logits as they would any others. "
            "The additional class is one more wall that a gradient finds its way around."
        ),
        paper="Grosse, Manoharan, Papernot, Backes, McDaniel 2017, "
        "On the (Statistical) Detection of Adversarial Examples",
        url="https://arxiv.org/abs/1702.06280",
        family="detector",
        tags=("deterministic", "differentiable", "rejects inputs"),
    )

    def __init__(self, data: DataInfo, loss: str = "joint", network: str = "auto") -> None:
        super().__init__(data)
        check_source(loss, ("joint",), "outlier-class")
        self.loss, self.network = loss, network
        self.reader = classifier_for(replace(data, num_classes=data.num_classes + 1), network)

    def detect(self, x: Tensor) -> Tensor:
        """Log odds of the class for adversarial images against all others; ``(N,)``."""
        logits = self.reader(x)
        odds: Tensor = logits[:, -1] - logits[:, :-1].logsumexp(1)
        return odds

    def fit(self, run: TrainingRun, classifier: Defense) -> None:
        """Cross-entropy on training images with their labels, and on as many adversarial ones with the last class."""

        def loss(x: Tensor, y: Tensor) -> Tensor:
            x_adv = joint_examples(classifier, x, y, run.threat, self.loss)
            labels = torch.cat([y, torch.full_like(y, self.data.num_classes)])
            return F.cross_entropy(self.reader(torch.cat([x, x_adv])), labels)

        minimise_detector(run, "network with an outlier class", self.reader, loss, self.network)
