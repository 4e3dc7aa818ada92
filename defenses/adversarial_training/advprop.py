"""AdvProp: adversarial examples as training data with batch statistics of their own (Xie et al. 2020)."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from bench.contracts.defense import Card, Defense
from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo
from bench.contracts.threat import Lp
from defenses.parts.adversarial_recipes import minimise_in_ball
from defenses.parts.nets import classifier_for, replace
from defenses.parts.recipes import pgd_examples, schedule_for

if TYPE_CHECKING:
    from bench.training.recipe import TrainingRun


class AdvProp(Defense):
    """A network trained on clean and on adversarial batches, each with a batch norm of its own.

    The one for clean images is used at test time. The paper trains EfficientNets on ImageNet with a ball of 1/255 to
    4/255; here it is that of the suite.

    Args:
        data: decides the architecture.
        steps: of the PGD inside training; the paper takes 5, or 1 for small networks. 3 at most on the compact network.
        network: another architecture by its name (``defenses.parts.nets.NETWORKS``); it must have batch norm.
    """

    version = 1
    kinds = ("image",)
    card = Card(
        title="AdvProp",
        summary=(
            "Clean images and PGD examples train one network together, "
            "but each kind passes through a batch norm of its own, and only the clean one is used at test time. "
            "The adversarial images were meant as extra training data of another distribution, "
            "to raise clean accuracy on ImageNet to 85.5 %. "
            "Robustness to small perturbations was not claimed, though it was hoped for on corrupted images. "
            "With the clean batch norm the network never saw an adversarial image in training, "
            "and only the weights that both kinds share make it a little harder to attack. "
            "Plain gradient attacks of many steps take most of its accuracy."
        ),
        paper="Xie, Tan, Gong, Wang, Yuille, Le 2020, Adversarial Examples Improve Image Recognition",
        url="https://arxiv.org/abs/1911.09665",
        family="adversarial training",
        tags=("deterministic", "differentiable"),
    )

    def __init__(self, data: DataInfo, steps: int = 5, network: str = "auto") -> None:
        super().__init__(data)
        if steps < 1:
            raise InputError(f"advprop: steps {steps} must be at least 1")
        self.steps = steps
        self.network = network
        self.classifier = replace(classifier_for(data, network), nn.BatchNorm2d, DualBatchNorm)
        if not any(isinstance(module, DualBatchNorm) for module in self.classifier.modules()):
            raise InputError(f"advprop: network {network} has no batch norm")

    def fit(self, run: TrainingRun) -> None:
        """The paper's equation 3: cross-entropy of clean images and of PGD examples in the ball of ``run.threat``."""
        steps = schedule_for(run.info, self.network).inner(self.steps)

        def loss(x: Tensor, y: Tensor, threat: Lp) -> Tensor:
            with auxiliary(self.classifier):
                x_adv = pgd_examples(self.classifier, x, y, threat, steps)
                adversarial = F.cross_entropy(self.classifier(x_adv), y)
            return F.cross_entropy(self.classifier(x), y) + adversarial

        minimise_in_ball(run, self.classifier, loss, stage="advprop", network=self.network)


class DualBatchNorm(nn.Module):
    """A batch norm for clean images and a copy of it for adversarial ones; the former unless :func:`auxiliary`."""

    def __init__(self, main: nn.Module) -> None:
        super().__init__()
        self.main = main
        self.auxiliary = copy.deepcopy(main)
        self.adversarial = False

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.auxiliary(x) if self.adversarial else self.main(x)
        return out


@contextlib.contextmanager
def auxiliary(network: nn.Module) -> Iterator[None]:
    """Within it, every :class:`DualBatchNorm` of the network uses the batch norm for adversarial images."""
    layers = [module for module in network.modules() if isinstance(module, DualBatchNorm)]
    for layer in layers:
        layer.adversarial = True
    try:
        yield
    finally:
        for layer in layers:
            layer.adversarial = False
