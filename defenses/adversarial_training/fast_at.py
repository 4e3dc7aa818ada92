"""Fast adversarial training: FGSM from a random start (Wong et al. 2020)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from bench.contracts.defense import Card, Claim, Defense
from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo
from bench.contracts.threat import Lp
from defenses.parts.adversarial_recipes import minimise_in_ball, one_step_examples
from defenses.parts.nets import classifier_for

if TYPE_CHECKING:
    from bench.training.recipe import TrainingRun


class FastAT(Defense):
    """A network trained on one-step examples that start at a random point of the ball (the paper's algorithm 3).

    The paper's network on CIFAR-10 is ``network=preact-resnet18``. Its cyclic learning rate, which saves epochs, is
    replaced by the milestones of all networks here.

    Args:
        data: decides the architecture.
        step: length of the one step in units of eps; the paper takes 1.25 (10/255 for eps 8/255).
        network: another architecture by its name (``defenses.parts.nets.NETWORKS``).
    """

    version = 1
    card = Card(
        title="Fast adversarial training",
        summary=(
            "The network is trained on adversarial examples of a single gradient step from a random start. "
            "The random start was found to make one step nearly as good as the many of PGD training, "
            "at the price of two backward passes instead of eight. "
            "The network is used as it is, so gradients are exact and nothing is hidden. "
            "Training can collapse within an epoch to a network that only resists single steps "
            "(catastrophic overfitting), which any attack of many steps shows. "
            "Where it does not collapse, strong attacks find it a little weaker than PGD training."
        ),
        paper="Wong, Rice, Kolter 2020, Fast is better than free: Revisiting adversarial training",
        url="https://arxiv.org/abs/2001.03994",
        family="adversarial training",
        tags=("deterministic", "differentiable"),
        claims=(
            Claim("cifar10", "linf 8/255", None, 45.0, "PGD", "Wong et al. 2020, abstract"),
            Claim("imagenet", "linf 2/255", None, 43.0, "PGD", "Wong et al. 2020, abstract"),
        ),
        breaks=(
            Claim("cifar10", "linf 8/255", 83.34, 43.21, "AutoAttack", "RobustBench, Wong2020Fast"),
        ),
    )  # fmt: skip

    def __init__(self, data: DataInfo, step: float = 1.25, network: str = "auto") -> None:
        super().__init__(data)
        if not step > 0:
            raise InputError(f"fast-at: step {step} must be above 0")
        self.step = step
        self.network = network
        self.classifier = classifier_for(data, network)

    def fit(self, run: TrainingRun) -> None:
        """Cross-entropy at one-step examples in the ball of ``run.threat``."""

        def loss(x: Tensor, y: Tensor, threat: Lp) -> Tensor:
            x_adv = one_step_examples(self.classifier, x, y, threat, step=self.step, random_start=True)
            return F.cross_entropy(self.classifier(x_adv), y)

        minimise_in_ball(run, self.classifier, loss, stage="fast adversarial training", network=self.network)
