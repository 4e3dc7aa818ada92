"""Stochastic activation pruning (Dhillon et al. 2018)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bench.contracts.defense import Card, Claim, Defense
from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo
from defenses.parts.nets import classifier_for, replace
from defenses.parts.recipes import existing_classifier, natural_training

if TYPE_CHECKING:
    from bench.training.recipe import TrainingRun


class StochasticActivationPruning(nn.Module):
    """Keeps a random part of the activations, large ones more likely, and scales it up (algorithm 1).

    The paper draws r = round(ratio · n) of the n activations h of an example with replacement, with probability
    p_j = |h_j| / Σ|h|, and divides those drawn at least once by the probability of that, q_j = 1 - (1 - p_j)^r; the
    others become 0. Here each activation is kept with that probability q_j by a coin of its own, which has the same
    mean and variance per activation and is several times as fast. In training mode nothing is done.

    Mask and scale are constants to autograd: their product is 1 in expectation, so that what flows back is an unbiased
    gradient of the expected activation. (The derivative of the scale would cancel the activation's own: where r·p is
    small, a kept activation is worth Σ|h| / r, whatever it was.)
    """

    def __init__(self, ratio: float) -> None:
        super().__init__()
        self.ratio = ratio

    def forward(self, h: Tensor) -> Tensor:
        return h if self.training else h * self.factors(h)

    @torch.no_grad()
    def factors(self, h: Tensor) -> Tensor:
        """A draw of mask times scale, shaped like ``h (N, …)``."""
        size = h.flatten(1).abs()
        p = size / size.sum(1, keepdim=True).clamp_min(torch.finfo(size.dtype).tiny)
        draws = max(1, round(self.ratio * size.shape[1]))
        ever = -torch.expm1(draws * torch.log1p(-p))
        kept = torch.rand_like(ever) < ever
        return torch.where(kept, 1 / ever, 0.0).view(h.shape)


class SAP(Defense):
    """A naturally trained network whose activations are pruned at random at test time.

    g is the identity; the randomness is inside f, after every ReLU. The paper's network is a ResNet-20
    (``network=resnet20``).

    Args:
        data: decides the architecture.
        ratio: samples drawn in each layer, as a share of its activations (the paper's SAP-100 draws 1.0). Clean
            validation accuracy on digits: 0.25 67 %, 0.5 95 %, 1.0 99 % (unpruned: 99 %).
        network: another architecture by its name (``defenses.parts.nets``).
    """

    version = 1
    kinds = ("image",)
    trains_in_ball = False
    card = Card(
        title="Stochastic activation pruning",
        summary=(
            "After every layer of a trained network a random subset of the activations is kept and rescaled, the "
            "rest is set to zero; large activations are kept with higher probability. "
            "The defender was thought to play a mixed strategy in a game against an attacker who sees one draw only. "
            "The network needs no retraining, and its mean output is nearly that of the network without pruning. "
            "Averaging the gradient over several draws removes the randomness. "
            "Athalye, Carlini and Wagner reduced it that way to 0 % on CIFAR-10 in 2018."
        ),
        paper="Dhillon, Azizzadenesheli, Lipton, Bernstein, Kossaifi, Khanna, Anandkumar 2018, "
        "Stochastic Activation Pruning for Robust Adversarial Defense",
        url="https://arxiv.org/abs/1803.01442",
        family="randomised",
        tags=("randomised", "differentiable", "stochastic network"),
        breaks=(
            Claim("cifar10", "linf 0.031", None, 0.0, "EOT", "Athalye et al. 2018, table 1"),
        ),
    )  # fmt: skip
    randomized = True

    def __init__(self, data: DataInfo, ratio: float = 1.0, network: str = "auto") -> None:
        super().__init__(data)
        if not 0 < ratio <= 10:
            raise InputError(f"sap: ratio {ratio} is outside (0, 10]")
        self.ratio, self.network = ratio, network
        self.weights_of = existing_classifier(data)  # pruning has no parameters: the keys are those of the network
        pruned = StochasticActivationPruning
        self.classifier = replace(
            classifier_for(data, network), nn.ReLU, lambda relu: nn.Sequential(relu, pruned(ratio))
        )

    def fit(self, run: TrainingRun) -> None:
        """Cross-entropy on clean images, without pruning."""
        natural_training(run, self.classifier, network=self.network)
