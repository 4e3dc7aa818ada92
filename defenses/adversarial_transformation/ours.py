"""Defense by adversarial transformation (Xiao & Zheng 2020, One Man's Trash Is Another Man's Treasure).

g attacks the image itself: PGD on a frozen external network, with a perturbation far larger than any attacker may
use, from a random start. f is trained to classify what g leaves.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.contracts.defense import Approximation, Card, Claim, Defense, Guide, Picks, freeze
from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo
from defenses.parts.inner_descent import Slope, descend, smooth_approximations
from defenses.parts.nets import classifier_for, external_for, is_compact
from defenses.parts.recipes import adversarial_training, natural_training, train_classifier
from defenses.parts.smooth_sign import tanh_slope

if TYPE_CHECKING:
    from bench.training.recipe import TrainingRun

Mode = Literal["least-likely", "untargeted"]
External = Literal["adversarial", "standard", "untrained"]

_SOURCE = "Xiao & Zheng 2020, tables 2, 3, 6 and appendix A.2"


class AdversarialTransformation(Defense):
    """f(g(x)), g an adversarial attack on an external network.

    Args:
        data: decides both architectures.
        mode: ``least-likely``: towards the class that the external network holds least likely at x (the paper);
            ``untargeted``: away from the class that it predicts (the authors' released notebook).
        random_start: start uniformly in the ball; otherwise at x, which makes the defense deterministic.
        steps: of the inner PGD (the paper: 13).
        radius: of its linf ball, in pixel units (the paper, CIFAR-10: 0.2). Default: 0.2 from 16 pixels on, else
            SMALL_RADIUS.
        step_size: default radius / 10, as in the authors' released code (the paper's number is lost).
        external: training of the external network: ``adversarial`` (PGD at the suite's eps; the paper's choice),
            ``standard`` or ``untrained``.
        external_epochs: stop standard training of the external network after so many (the paper's table 1).
        external_width: factor on the channels of the external network, whose table 4 takes 13 times a forward and a
            backward pass of 41 million multiplications for every image of CIFAR-10. Default: 0.5 where the classifier
            is ``compact`` as well (10 million), else 1.
        ensemble: number of external networks, trained from different initial weights; g attacks their mean logits.
        network: another architecture of f by its name (``defenses.parts.nets``).
    """

    version = 1
    kinds = ("image",)
    card = Card(
        title="Adversarial transformation",
        summary=(
            "Every image is attacked by the defense itself: PGD towards the least likely class of a small "
            "external network, from a random start, with a perturbation far larger than an attacker may use; "
            "the classifier is trained on such images. "
            "The transformation has sign steps and a projection but no useful gradient, and its expectation "
            "lies far from the input, so that BPDA, EOT and finite differences were thought to fail. "
            "On CIFAR-10 its authors found no attack that took more than five points of its clean accuracy. "
            "Similar test-time defenses later fell to about the accuracy of their static base model. "
            "On small images the identity as the backward pass, averaged over a few draws, is enough."
        ),
        paper="Xiao, Zheng 2020, One Man's Trash Is Another Man's Treasure: "
        "Resisting Adversarial Examples by Adversarial Examples",
        url="https://arxiv.org/abs/1911.11219",
        family="adversarial transformation",
        tags=("randomised", "not differentiable", "inner optimisation"),
        claims=(
            Claim("cifar10", "linf 0.031", 82.9, 78.1, "transfer, worst of all in the paper", _SOURCE),
            Claim("cifar10", "linf 0.031", 82.9, 80.2, "BPDA", _SOURCE),
            Claim("cifar10", "linf 0.031", 82.9, 82.0, "HopSkipJump", _SOURCE),
            Claim("cifar10", "linf 0.031", 82.9, 81.9, "GenAttack", _SOURCE),
            Claim("cifar10", "linf 0.031", 82.9, 81.1, "reparameterization", _SOURCE),
            Claim("tiny-imagenet", "linf 0.031", 48.8, 40.2, "transfer, worst of all in the paper", _SOURCE),
            Claim("tiny-imagenet", "linf 0.031", 48.8, 47.9, "BPDA", _SOURCE),
        ),
    )

    def __init__(
        self,
        data: DataInfo,
        mode: Mode = "least-likely",
        random_start: bool = True,
        steps: int = 13,
        radius: float | None = None,
        step_size: float | None = None,
        external: External = "adversarial",
        external_epochs: int | None = None,
        external_width: float | None = None,
        ensemble: int = 1,
        network: str = "auto",
    ) -> None:
        super().__init__(data)
        if radius is None:
            radius = 0.2 if min(data.shape[1:]) >= 16 else SMALL_RADIUS
        if step_size is None:
            step_size = radius / 10
        if external_epochs is not None and external != "standard":
            raise InputError(f"ours: external_epochs belongs to external=standard, not {external}")
        if external_width is None:
            external_width = 0.5 if is_compact(data, network) else 1.0
        settings = {"steps": steps, "radius": radius, "step_size": step_size, "ensemble": ensemble}
        settings |= {"external_width": external_width}
        for name, value in settings.items():
            if not value > 0:
                raise InputError(f"ours: {name} {value} must be greater than 0")
        self.mode, self.randomized, self.steps = mode, random_start, steps
        self.radius, self.step_size = radius, step_size
        self.external_training, self.external_epochs, self.network = external, external_epochs, network
        self.trains_in_ball = external == "adversarial"
        members = [external_for(data, external_width) for _ in range(ensemble)]
        self.external = freeze(members[0] if ensemble == 1 else MeanLogits(members))
        self.classifier = classifier_for(data, network)

    def train(self, mode: bool = True) -> AdversarialTransformation:
        """As usual, except that the external network always stays in evaluation mode."""
        super().train(mode)
        self.external.eval()
        return self

    # -- g --------------------------------------------------------------------------------------------------

    def transform(self, x: Tensor) -> Tensor:
        """One draw of g(x); ``(N, C, H, W)``, within ``radius`` of x. See :meth:`transform_from`."""
        return self.transform_from(x, self.sample_start(x))

    def sample_start(self, x: Tensor) -> Tensor:
        """The start noise δ0, shaped like x: uniform in ±radius, or zero without a random start."""
        if not self.randomized:
            return torch.zeros_like(x)
        return self.radius * (2 * torch.rand_like(x) - 1)

    def transform_from(self, x: Tensor, start: Tensor) -> Tensor:
        """g(x) for a given start noise: deterministic. The result carries no graph.

        x_{k+1} = Π(x_k − α sign ∇CE(f_ext(x_k), t)), eq. 3, with t the least likely class at x; in untargeted mode
        the sign is + and t the predicted class. Π projects onto the ball around x only: like the authors' g, the
        result may leave [0, 1].
        """
        return self._from(x, start)

    def _from(
        self,
        x: Tensor,
        start: Tensor,
        slope: Slope | None = None,
        label: Tensor | None = None,
        steps: int | None = None,
    ) -> Tensor:
        """g(x) for a given start noise; ``slope``: as in :func:`defenses.parts.inner_descent.descend`.

        With ``label`` (N,) the inner attack goes by these classes, and in ``steps`` steps it goes as far as in all.
        """
        label = self._inner_label(x) if label is None else label
        step_size = self.step_size if steps is None else self.step_size * self.steps / steps
        steps = self.steps if steps is None else steps
        sign = 1 if self.mode == "least-likely" else -1

        def loss(z: Tensor) -> Tensor:
            return sign * F.cross_entropy(self.external(z), label, reduction="sum")

        return descend(x, start, loss, steps=steps, step_size=step_size, radius=self.radius, slope=slope)

    @torch.no_grad()
    def _inner_label(self, x: Tensor) -> Tensor:
        """The class that g moves towards (least likely) or away from (most likely), as seen at x; ``(N,)``."""
        logits: Tensor = self.external(x)
        return logits.argmin(1) if self.mode == "least-likely" else logits.argmax(1)

    # -- smooth stand-ins -----------------------------------------------------------------------------------

    def approximations(self) -> dict[str, Approximation]:
        """``tanh`` and ``softsign``, the paper's two: forward a fresh draw of g, backward smooth.

        The backward pass of every step takes sign(u) for tanh(ũ) or ũ/(1 + |ũ|), with ũ = u / mean|u| per example.
        The scale is ours: gradients of the external network are so small that without it both functions are linear
        with a slope that says nothing about sign. The projection's derivative is 1 inside the ball and
        ``smooth_sign.LEAK`` where it clips (eq. 5).
        """
        return smooth_approximations(lambda x, slope: self._from(x, self.sample_start(x), slope))

    # -- for attackers --------------------------------------------------------------------------------------

    def variants(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """``steps-3`` and ``steps-1``: as many steps, each as much longer. ``tanh-3`` and ``tanh-1``: a draw of g
        whose backward pass is that of so many steps from the same start, with a smooth sign. ``fixed-start``: one
        start noise for all draws and images."""
        fewer = [steps for steps in _FEWER if steps < self.steps]
        found: dict[str, Callable[[Tensor], Tensor]] = {}
        found |= {f"steps-{steps}": partial(self._with_fewer, steps=steps) for steps in fewer}
        found |= {f"tanh-{steps}": partial(self._shortened, steps=steps) for steps in fewer}
        if self.randomized:
            found["fixed-start"] = self._from_one_start
        return found

    def _with_fewer(self, x: Tensor, steps: int) -> Tensor:
        return self._from(x, self.sample_start(x), steps=steps)

    def _shortened(self, x: Tensor, steps: int) -> Tensor:
        start = self.sample_start(x)
        short = self._from(x, start, tanh_slope, steps=steps)
        return short + (self._from(x, start) - short).detach()

    def _from_one_start(self, x: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        noise = torch.rand(x.shape[1:], generator=generator).to(x)
        return self._from(x, (self.radius * (2 * noise - 1)).expand_as(x))

    def guide(self) -> Guide:
        """The external network."""
        picks: Picks = "least-likely" if self.mode == "least-likely" else "most-likely"
        return Guide(self.external, picks, lambda x, label: self._from(x, self.sample_start(x), label=label))

    # -- training -------------------------------------------------------------------------------------------

    def fit(self, run: TrainingRun) -> None:
        """First the external network, or each of them; then f on g(x), a fresh draw for every batch."""
        self.external.requires_grad_(True)
        members = list(self.external) if isinstance(self.external, MeanLogits) else [self.external]
        for number, member in enumerate(members, 1):
            stage = "external network" if len(members) == 1 else f"external network {number}"
            if self.external_training == "adversarial":
                adversarial_training(run, member, stage=stage)
            elif self.external_training == "standard":
                natural_training(run, member, stage, epochs=self.external_epochs)
        freeze(self.external)
        epochs = _COSTLY_EPOCHS if is_compact(self.data, self.network) else None
        train_classifier(run, self, self.network, epochs)


#: Inner steps of the variants of g.
_FEWER = (3, 1)

#: Epochs of f where it is compact: one on g(x) costs some six of a network on x.
_COSTLY_EPOCHS = 8

#: Default radius below 16 pixels: the largest of 0.3, 0.4, 0.5 that keeps clean validation accuracy on digits at
#: 90 % or more (95.3, 92.6 and 88.5 %). Robustness had no say.
SMALL_RADIUS = 0.4


class MeanLogits(nn.ModuleList):
    """Networks whose logits are averaged."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([network(x) for network in self]).mean(0)
