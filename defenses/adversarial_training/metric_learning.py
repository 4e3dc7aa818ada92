"""Triplet loss adversarial training (Mao et al. 2019)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.contracts.defense import Card, Claim, Defense
from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo
from bench.contracts.threat import Lp
from defenses.parts.adversarial_recipes import minimise_in_ball
from defenses.parts.nets import classifier_for
from defenses.parts.recipes import pgd_examples, schedule_for

if TYPE_CHECKING:
    from bench.training.recipe import TrainingRun

#: Weight of the penalty on the length of the features (the authors' configuration for CIFAR-10).
LENGTH_WEIGHT = 1e-3


class MetricLearning(Defense):
    """PGD training plus a triplet loss on the features before the last layer.

    The adversarial image is the anchor, a random clean image of its class the positive, and the clean image of
    another class whose features lie nearest the negative, all within the batch. The authors' networks are a
    convolutional one and a ResNet-50 (``network=torchvision.resnet50``).

    Args:
        data: decides the architecture.
        weight: λ₁ of the triplet loss; this and the margin are the authors' configuration for CIFAR-10.
        margin: α in units of the angular distance 1 - |cos|.
        steps: of the PGD inside training; 3 at most on the compact network.
        network: another architecture by its name (``defenses.parts.nets.NETWORKS``).
    """

    version = 1
    kinds = ("image",)
    card = Card(
        title="Metric learning",
        summary=(
            "PGD training with a triplet loss: the features of an adversarial image are drawn towards a clean image "
            "of its class and pushed from the nearest one of another class. "
            "Attacks were seen to move the features into the region of the wrong class, "
            "which the triplet loss should prevent. "
            "There is nothing at test time but the network, so gradients are exact and nothing is hidden. "
            "The paper reports up to four points more than PGD training alone. "
            "Attacks of many steps leave it at the level of other networks trained with PGD."
        ),
        paper="Mao, Zhong, Yang, Vondrick, Ray 2019, Metric Learning for Adversarial Robustness",
        url="https://arxiv.org/abs/1909.00900",
        family="adversarial training",
        tags=("deterministic", "differentiable"),
        breaks=(
            Claim("tiny-imagenet", "linf 0.031", 40.9, 17.5, "PGD, worst of all in the paper",
                  "Xiao & Zheng 2020, table 6"),
        ),
    )  # fmt: skip

    def __init__(
        self, data: DataInfo, weight: float = 2.0, margin: float = 0.03, steps: int = 10, network: str = "auto"
    ) -> None:
        super().__init__(data)
        if not weight >= 0:
            raise InputError(f"metric-learning: weight {weight} must be at least 0")
        if not 0 <= margin <= 1:
            raise InputError(f"metric-learning: margin {margin} is outside 0..1")
        if steps < 1:
            raise InputError(f"metric-learning: steps {steps} must be at least 1")
        self.weight = weight
        self.margin = margin
        self.steps = steps
        self.network = network
        self.classifier = classifier_for(data, network)

    def fit(self, run: TrainingRun) -> None:
        """The paper's equation 5: cross-entropy at PGD examples, the triplet loss, and a penalty on long features."""
        last = _last_linear(self.classifier, self.network)
        steps = schedule_for(run.info, self.network).inner(self.steps)

        def loss(x: Tensor, y: Tensor, threat: Lp) -> Tensor:
            x_adv = pgd_examples(self.classifier, x, y, threat, steps)
            seen: list[Tensor] = []
            hook = last.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
            logits = self.classifier(torch.cat([x_adv, x]))
            hook.remove()
            anchor, clean = seen[0].chunk(2)
            length = seen[0].norm(dim=1).mean()
            metric = triplet_loss(anchor, clean, y, self.margin)
            total: Tensor = F.cross_entropy(logits[: len(x)], y) + self.weight * metric + LENGTH_WEIGHT * length
            return total

        minimise_in_ball(run, self.classifier, loss, stage="metric learning", network=self.network)


def triplet_loss(anchor: Tensor, clean: Tensor, y: Tensor, margin: float) -> Tensor:
    """The mean of max(0, d(anchor, positive) - d(anchor, negative) + margin), with d = 1 - |cos|.

    The positive is a random other image of the class (the anchor's own clean image where it is the only one), the
    negative the nearest clean image of another class; an anchor without one does not count.

    Args:
        anchor: features of the adversarial images ``(N, D)``; clean: of the same images as they were.
        y: int64 ``(N,)``.
        margin: α.
    """
    distance = 1 - (F.normalize(anchor, dim=1) @ F.normalize(clean, dim=1).mT).abs()
    same = y[:, None] == y
    others = same & ~torch.eye(len(y), dtype=torch.bool, device=y.device)
    candidates = torch.where(others.any(1, keepdim=True), others, same)
    positive = distance.gather(1, torch.multinomial(candidates.to(distance), 1)).squeeze(1)
    negative = distance.masked_fill(same, torch.inf).amin(1)
    return (positive - negative + margin).clamp_min(0).mean()


def _last_linear(classifier: nn.Module, network: str) -> nn.Module:
    layers = [module for module in classifier.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise InputError(f"metric-learning: network {network} does not end in a linear layer")
    return layers[-1]
