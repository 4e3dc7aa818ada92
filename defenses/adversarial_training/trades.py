"""TRADES: clean accuracy against the stability of the output (Zhang et al. 2019)."""

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
from defenses.parts.recipes import schedule_for

if TYPE_CHECKING:
    from bench.training.recipe import TrainingRun

_XIAO = "Xiao & Zheng 2020"


class TRADES(Defense):
    """A network trained on CE(f(x), y) + β · KL(f(x) ‖ f(x')), x' being the point where PGD finds the KL largest.

    The paper's network on CIFAR-10 is ``network=wrn-34-10``.

    Args:
        data: decides the architecture.
        beta: β = 1/λ of the paper, which takes 1 and 6 in its tables; larger: more robust, less accurate.
        steps: of the inner PGD, of length 2.5·eps/steps; 3 at most on the compact network.
        network: another architecture by its name (``defenses.parts.nets.NETWORKS``).
    """

    version = 1
    card = Card(
        title="TRADES",
        summary=(
            "The network is trained for clean accuracy plus a multiple of the largest change of its output "
            "within the ball. "
            "The second term bounds how much the robust error exceeds the clean one, "
            "so that one number trades one for the other. "
            "It won the robust-model track of the Adversarial Vision Challenge at NeurIPS 2018. "
            "There is nothing at test time but the network, so gradients are exact and nothing is hidden. "
            "Stronger attacks took a few points from the published number and no more."
        ),
        paper="Zhang, Yu, Jiao, Xing, El Ghaoui, Jordan 2019, "
        "Theoretically Principled Trade-off between Robustness and Accuracy",
        url="https://arxiv.org/abs/1901.08573",
        family="adversarial training",
        tags=("deterministic", "differentiable"),
        claims=(
            Claim("cifar10", "linf 0.031", 84.92, 56.61, "PGD-20", "repository yaodongyu/TRADES, README"),
            Claim("mnist", "linf 0.3", 99.48, 96.07, "PGD-40", "repository yaodongyu/TRADES, README"),
        ),
        breaks=(
            Claim("cifar10", "linf 0.031", 84.92, 53.08, "AutoAttack", "RobustBench, Zhang2019Theoretically"),
            Claim("cifar10", "linf 0.031", 80.4, 44.6, "worst of all in the paper", f"{_XIAO}, table 3"),
            Claim("tiny-imagenet", "linf 0.031", 40.6, 17.7, "PGD, worst of all in the paper", f"{_XIAO}, table 6"),
        ),
    )

    def __init__(self, data: DataInfo, beta: float = 6.0, steps: int = 10, network: str = "auto") -> None:
        super().__init__(data)
        if not beta >= 0:
            raise InputError(f"trades: beta {beta} must be at least 0")
        if steps < 1:
            raise InputError(f"trades: steps {steps} must be at least 1")
        self.beta = beta
        self.steps = steps
        self.network = network
        self.classifier = classifier_for(data, network)

    def fit(self, run: TrainingRun) -> None:
        """The paper's equation 5 in the ball of ``run.threat``."""
        steps = schedule_for(run.info, self.network).inner(self.steps)

        def loss(x: Tensor, y: Tensor, threat: Lp) -> Tensor:
            x_adv = divergent_examples(self.classifier, x, threat, steps)
            clean = self.classifier(x)
            divergence = _divergence(self.classifier(x_adv), clean) / len(x)
            return F.cross_entropy(clean, y) + self.beta * divergence

        minimise_in_ball(run, self.classifier, loss, stage="trades", network=self.network)


def divergent_examples(module: nn.Module, x: Tensor, threat: Lp, steps: int) -> Tensor:
    """Images of the ball where PGD makes KL(f(x) ‖ f(x')) large, shaped like x ``(N, C, H, W)``.

    It starts a little beside x (Gaussian noise of 0.001), where the divergence is smallest and has no gradient.
    ``module`` is put in evaluation mode meanwhile and its mode is put back.
    """
    training = module.training
    module.eval()
    with torch.no_grad():
        clean = module(x)
    x_adv = threat.project_(x + 0.001 * torch.randn_like(x), x)
    for _ in range(steps):
        x_adv.requires_grad_()
        (grad,) = torch.autograd.grad(_divergence(module(x_adv), clean), x_adv)
        x_adv = threat.project_(x_adv.detach() + 2.5 * threat.eps / steps * steepest(grad, threat.norm), x)
    module.train(training)
    return x_adv


def _divergence(logits: Tensor, clean: Tensor) -> Tensor:
    """KL(softmax(clean) ‖ softmax(logits)), summed over the batch."""
    return F.kl_div(logits.log_softmax(1), clean.log_softmax(1), reduction="sum", log_target=True)
