"""Hedge defense: attack all classes at once before classifying (Wu et al. 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bench.contracts.defense import Approximation, Card, Claim, Defense
from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo
from defenses.parts.inner_descent import Slope, descend, smooth_approximations
from defenses.parts.nets import classifier_for
from defenses.parts.recipes import adversarial_training, existing_classifier

if TYPE_CHECKING:
    from bench.training.recipe import TrainingRun

_PAPER = "Wu et al. 2021, abstract"
_BREAK = "Croce et al. 2022, logs in the authors' repository (wu_2021)"


class Hedge(Defense):
    """f(g(x)), g an attack on f itself, an adversarially trained network: PGD that raises the loss of every class.

    The last point decides, as in the evaluation of Croce et al. 2022; the authors' code sums the logits of all steps.
    Theirs is clipped to [0, 1] and this is not: on CIFAR-10 2.6 % of the values leave the box, and clipping them
    changes the class of none of 100 images.

    Args:
        data: decides the architecture and the defaults.
        steps: of the inner PGD (the paper: 20). Default: 20 from 16 pixels on, else SMALL_STEPS.
        radius: of its linf ball, in pixel units (the paper, CIFAR-10: 8/255, that of the attacker). Default: 8/255
            from 16 pixels on, else SMALL_RADIUS.
        step_size: default radius / 2 (the paper: 4/255).
        network: another architecture by its name (``defenses.parts.nets``); the paper has wide ResNets
            (``network=wrn-28-10``, ``wrn-34-10``).
    """

    version = 1
    kinds = ("image",)
    card = Card(
        title="Hedge defense",
        summary=(
            "Before an image is classified, PGD from a random start perturbs it so as to raise the cross-entropy of "
            "all classes at once, on the very network that classifies it then. "
            "Adversarial training makes the loss of the true class flatter than that of the others, so that such a "
            "perturbation was thought to move the wrong classes more and to flip false predictions back. "
            "That helps against examples made for the network without the inner attack. "
            "Croce and colleagues attacked through the inner steps, with the identity as their backward pass, four "
            "draws and fewer steps than the defense takes, in 2022. "
            "What was left was the robust accuracy of the network alone, at twenty times its cost."
        ),
        paper="Wu, Pan, Shen, Gu, Zhao, Li, Cai, He, Liu 2021, Attacking Adversarial Attacks as A Defense",
        url="https://arxiv.org/abs/2106.04938",
        family="adversarial transformation",
        tags=("randomised", "not differentiable", "inner optimisation"),
        claims=(
            Claim("cifar10", "linf 8/255", None, 72.66, "AutoAttack on the network alone (66.16 without)", _PAPER),
            Claim("cifar10", "linf 8/255", None, 83.3, "Square (71.76 without)", _PAPER),
            Claim("imagenet", "linf, FastAT", None, 38.54, "PGD, 100 steps (33.18 without)", _PAPER),
        ),
        breaks=(
            Claim("cifar10", "linf 8/255", None, 59.6, "APGD, BPDA-I, EOT; Carmon 2019, alone 59.2", _BREAK),
            Claim("cifar10", "linf 8/255", None, 59.2, "the same with transfer from the network alone", _BREAK),
            Claim("cifar10", "linf 8/255", None, 45.2, "the same; Andriushchenko 2020, alone 45.0", _BREAK),
            Claim("cifar10", "linf 8/255", None, 61.0, "the same; Gowal 2020, alone 62.9", _BREAK),
        ),
    )
    randomized = True

    def __init__(
        self,
        data: DataInfo,
        steps: int | None = None,
        radius: float | None = None,
        step_size: float | None = None,
        network: str = "auto",
    ) -> None:
        super().__init__(data)
        self.weights_of = existing_classifier(data, of="madry")
        large = min(data.shape[1:]) >= 16
        if steps is None:
            steps = 20 if large else SMALL_STEPS
        if radius is None:
            radius = 8 / 255 if large else SMALL_RADIUS
        if step_size is None:
            step_size = radius / 2
        for name, value in {"steps": steps, "radius": radius, "step_size": step_size}.items():
            if not value > 0:
                raise InputError(f"hedge: {name} {value} must be greater than 0")
        self.steps, self.radius, self.step_size, self.network = steps, radius, step_size, network
        self.classifier = classifier_for(data, network)

    def transform(self, x: Tensor) -> Tensor:
        """One draw of g(x); ``(N, C, H, W)``, within ``radius`` of x. The result carries no graph."""
        return self._draw(x, None)

    def _draw(self, x: Tensor, slope: Slope | None) -> Tensor:
        start = self.radius * (2 * torch.rand_like(x) - 1)
        return descend(
            x, start, self._loss, steps=self.steps, step_size=self.step_size, radius=self.radius, slope=slope
        )

    def _loss(self, z: Tensor) -> Tensor:
        """Σ_c log p_c: what is minimised is minus the sum of the cross-entropies to all classes."""
        loss: Tensor = self.classifier(z).log_softmax(1).sum()
        return loss

    def approximations(self) -> dict[str, Approximation]:
        """``tanh`` and ``softsign``: the inner steps unrolled (:mod:`defenses.parts.inner_descent`)."""
        return smooth_approximations(self._draw)

    def fit(self, run: TrainingRun) -> None:
        """PGD adversarial training of f on the images themselves, in the ball of ``run.threat``."""
        adversarial_training(run, self.classifier, network=self.network)


#: Defaults below 16 pixels. Steps: few, for each costs a forward and a backward pass, and 5 and 10 have the same clean
#: validation accuracy on digits (98.0 %); so have radii of 0.1, 0.2 and 0.3, of which this is the attacker's in the
#: suite for digits, as in the paper.
SMALL_STEPS = 5
SMALL_RADIUS = 0.2
