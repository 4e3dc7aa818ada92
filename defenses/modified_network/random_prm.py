"""Pixel robustness manipulation with a new set of pixels for every pass (Hwang et al. 2019)."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.contracts.defense import Card
from defenses.modified_network.prm import PRM, SETS


class RandomPRM(PRM):
    """PRM (``defenses.modified_network.prm``) that draws one of the four sets of pixels for every image in every pass.

    One network h serves all sets; it is told which pixels it is given. The description of the authors' code lists a
    shift of the image by a pixel as a defense, which we take for the same idea: under a fixed lattice a shift chooses
    another set.

    Args:
        data: decides the architectures.
        strength: λ, 0 to 1.
        designated_set: the set that ``designated`` names, for measurements: the four are alike.
        width: channels of the U-Net's first scale.
        network: of the classifier, another architecture by its name (``defenses.parts.nets``).
    """

    version = 1
    kinds = ("image",)
    card = Card(
        title="Random pixel robustness manipulation",
        summary=(
            "For every pass one of four quarters of the pixels is drawn, a network rebuilds the image from it, and the "
            "classifier sees a mixture of the two. "
            "An attacker who follows the gradient of one pass was thought to perturb pixels that do not count in the "
            "next. "
            "The gradient of one pass indeed lies on the drawn quarter. "
            "There are only four draws, so expectation over transformation averages over all of them and perturbs "
            "every quarter at once. "
            "Where the budget is a bound on each pixel, attacking all quarters costs no more than attacking one."
        ),
        paper=PRM.card.paper,
        url=PRM.card.url,
        family="pixel robustness",
        tags=("randomised", "differentiable", "input transformation"),
    )
    randomized = True

    def draw_sets(self, x: Tensor) -> Tensor:
        """The set of pixels for each image, each its own draw; int64 ``(N,)``."""
        return torch.randint(SETS, (len(x),), device=x.device)
