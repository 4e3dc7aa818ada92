"""Adversarial training "for free" (Shafahi et al. 2019)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.toolkit.projections import steepest
from bench.contracts.defense import Card, Claim, Defense
from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo
from bench.contracts.threat import Lp
from defenses.parts.adversarial_recipes import minimise_in_ball
from defenses.parts.nets import classifier_for

if TYPE_CHECKING:
    from bench.training.recipe import TrainingRun

_SOURCE = "repository ashafahi/free_adv_train, README, Free-8"


class FreeAT(Defense):
    """A network whose one backward pass updates its weights and the perturbation of the batch (algorithm 1).

    Every batch is replayed ``replays`` times and the number of epochs divided by that, so that training costs as
    much as natural training. The perturbation is handed on from batch to batch and restarts at zero in every epoch,
    so that a run which was interrupted continues as if it had not been. The paper's network on CIFAR-10 is
    ``network=wrn-32-10``.

    Args:
        data: decides the architecture.
        replays: m, steps in a row on each batch. 8 is the paper's best on CIFAR-10, and on digits it has the highest
            clean validation accuracy (99.1 %, against 98.8 % with 4).
        network: another architecture by its name (``defenses.parts.nets.NETWORKS``).
    """

    version = 1
    card = Card(
        title="Free adversarial training",
        summary=(
            "Every batch is trained on several times in a row, and each backward pass updates the network's weights "
            "and the perturbation of the batch at once. "
            "The perturbation thus costs nothing, and over the replays it comes near to that of PGD. "
            "The paper reports the robustness of PGD training at the cost of natural training. "
            "There is nothing at test time but the network, so gradients are exact and nothing is hidden. "
            "Strong attacks lower its accuracy about as far as that of a network trained with PGD."
        ),
        paper="Shafahi, Najibi, Ghiasi, Xu, Dickerson, Studer, Davis, Taylor, Goldstein 2019, "
        "Adversarial Training for Free!",
        url="https://arxiv.org/abs/1904.12843",
        family="adversarial training",
        tags=("deterministic", "differentiable"),
        claims=(
            Claim("cifar10", "linf 8/255", 85.96, 46.19, "PGD-100", _SOURCE),
            Claim("cifar10", "linf 8/255", 85.96, 46.33, "PGD-20, 10 restarts", _SOURCE),
            Claim("cifar100", "linf 8/255", 62.13, 25.58, "PGD-100", _SOURCE),
        ),
    )

    def __init__(self, data: DataInfo, replays: int = 8, network: str = "auto") -> None:
        super().__init__(data)
        if replays < 1:
            raise InputError(f"free-at: replays {replays} must be at least 1")
        self.replays = replays
        self.network = network
        self.classifier = classifier_for(data, network)

    def fit(self, run: TrainingRun) -> None:
        """Cross-entropy at the perturbation that the backward pass before left, in the ball of ``run.threat``."""
        perturbation = Perturbation(self.classifier)

        def loss(x: Tensor, y: Tensor, threat: Lp) -> Tensor:
            return perturbation.loss(x, y, threat, run.epoch)

        minimise_in_ball(
            run,
            self.classifier,
            loss,
            stage="free adversarial training",
            network=self.network,
            replays=self.replays,
        )


class Perturbation:
    """The perturbation δ that free adversarial training hands on, and the loss whose backward pass moves it.

    Attributes:
        delta: as large as the first batch of the epoch; zeros at its start. A smaller batch uses the first rows.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.delta = torch.empty(0)
        self.epoch = -1

    def loss(self, x: Tensor, y: Tensor, threat: Lp, epoch: int) -> Tensor:
        """Cross-entropy at x + δ, a scalar. ``backward`` of it also takes δ one step of eps up, back into the ball."""
        if epoch != self.epoch:
            self.epoch, self.delta = epoch, torch.zeros_like(x)
        rows = self.delta[: len(x)]
        x_adv = threat.project_(x + rows, x).requires_grad_()

        def ascend(grad: Tensor) -> None:
            with torch.no_grad():
                moved = x_adv + threat.eps * steepest(grad, threat.norm)
                rows.copy_(threat.project_(moved, x) - x)

        x_adv.register_hook(ascend)
        return F.cross_entropy(self.module(x_adv), y)
