"""Adversarial training with PGD (Madry et al. 2018)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.contracts.defense import Card, Claim, Defense
from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo
from defenses.parts.nets import classifier_for
from defenses.parts.recipes import adversarial_training

if TYPE_CHECKING:
    from bench.training.recipe import TrainingRun

_SOURCE = "Xiao & Zheng 2020, tables 2, 3 and 6"


class Madry(Defense):
    """A network trained on the adversarial examples that PGD finds for it.

    Args:
        data: decides the architecture.
        steps: of the PGD inside training, at the eps of the suite's threat model; 3 at most on the compact network.
        network: another architecture by its name (``defenses.parts.nets.NETWORKS``).
        epochs: of training, in place of the schedule's own number.

    Raises:
        InputError: fewer than one step or epoch.
    """

    version = 1
    card = Card(
        title="Adversarial training",
        summary=(
            "The network is trained on adversarial examples that PGD finds for it in every batch. "
            "The training loss is thus the worst case over the ball, as well as PGD can find it. "
            "There is nothing at test time but the network, so gradients are exact and nothing is hidden. "
            "Stronger attacks lower its accuracy by a few points only. "
            "It pays with clean accuracy and with training time, and does not hold for other norms."
        ),
        paper="Madry, Makelov, Schmidt, Tsipras, Vladu 2018, "
        "Towards Deep Learning Models Resistant to Adversarial Attacks",
        url="https://arxiv.org/abs/1706.06083",
        family="adversarial training",
        tags=("deterministic", "differentiable"),
        claims=(
            Claim("cifar10", "linf 0.031", 81.7, 42.7, "PGD, worst of all in the paper", _SOURCE),
            Claim("cifar10", "linf 0.031", 81.7, 77.5, "transfer", _SOURCE),
            Claim("cifar10", "linf 0.031", 81.7, 72.1, "HopSkipJump", _SOURCE),
            Claim("cifar10", "linf 0.031", 81.7, 78.4, "GenAttack", _SOURCE),
            Claim("tiny-imagenet", "linf 0.031", 42.7, 17.3, "PGD, worst of all in the paper", _SOURCE),
        ),
    )

    def __init__(self, data: DataInfo, steps: int = 10, network: str = "auto", epochs: int | None = None) -> None:
        super().__init__(data)
        if steps < 1:
            raise InputError(f"madry: steps {steps} must be at least 1")
        if epochs is not None and epochs < 1:
            raise InputError(f"madry: epochs {epochs} must be at least 1")
        self.steps, self.network, self.epochs = steps, network, epochs
        self.classifier = classifier_for(data, network)

    def fit(self, run: TrainingRun) -> None:
        """PGD adversarial training in the ball of ``run.threat``."""
        adversarial_training(run, self.classifier, steps=self.steps, network=self.network, epochs=self.epochs)
