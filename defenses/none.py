"""No defense: the classifier as it is. The reference that every other defense is compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.contracts.defense import Card, Claim, Defense
from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo
from defenses.parts.nets import classifier_for
from defenses.parts.recipes import train_classifier

if TYPE_CHECKING:
    from bench.training.recipe import TrainingRun

_SOURCE = "Xiao & Zheng 2020, tables 2 and 3"


class Undefended(Defense):
    """A naturally trained network.

    Args:
        data: decides the architecture.
        network: another one by its name (``defenses.parts.nets.NETWORKS``).
        epochs: of training, in place of the schedule's own number.

    Raises:
        InputError: fewer than one epoch.
    """

    version = 1
    trains_in_ball = False
    card = Card(
        title="Undefended",
        summary=(
            "An ordinary network trained on clean images. Nothing is done to the input. "
            "It was never thought to be robust. A few gradient steps break it on almost every image. "
            "It is here as the reference for accuracy and for inference time."
        ),
        family="undefended",
        tags=("deterministic", "differentiable"),
        claims=(
            Claim("cifar10", "linf 0.031", 92.9, 0.0, "worst of all in the paper", _SOURCE),
            Claim("cifar10", "linf 0.031", 92.9, 1.3, "transfer", _SOURCE),
            Claim("cifar10", "linf 0.031", 92.9, 3.6, "HopSkipJump", _SOURCE),
            Claim("cifar10", "linf 0.031", 92.9, 5.8, "GenAttack", _SOURCE),
        ),
    )

    def __init__(self, data: DataInfo, network: str = "auto", epochs: int | None = None) -> None:
        super().__init__(data)
        if epochs is not None and epochs < 1:
            raise InputError(f"none: epochs {epochs} must be at least 1")
        self.network, self.epochs = network, epochs
        self.classifier = classifier_for(data, network)

    def fit(self, run: TrainingRun) -> None:
        """Cross-entropy on clean images."""
        train_classifier(run, self, self.network, self.epochs)
