"""BPDA as it was released with the adversarial transformation, defects included: ``released-bpda``."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from attacks.toolkit.estimators import Classifier
from attacks.toolkit.losses import Goal, ce
from attacks.toolkit.paths import straight_through
from bench.contracts.attack import attack
from bench.contracts.defense import Defense, as_logits
from bench.contracts.target import Target


@attack(
    "released-bpda",
    version=1,
    knowledge="gradient",
    norms=("linf",),
    paper="Xiao & Zheng 2020, One Man's Trash Is Another Man's Treasure, as its authors released it",
    url="https://arxiv.org/abs/1911.11219",
    adapts=True,
)
def released_bpda(
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    steps: Annotated[int, Ge(1)] = 20,
    step_size: Annotated[float, Gt(0)] = 0.1,
) -> Tensor:
    """The BPDA that the adversarial transformation was released with, to show what its defects cost.

    (1) The gradient is that of f at g(x_k) + x, about twice the image. (2) The label that is left behind is f's own at
    x, where f has never seen an image without g, not y. (3) One draw of g, and the gradient divided by draws - 1, which
    is zero: each value becomes ±∞, whose sign is kept, or NaN where the gradient is exactly zero. (4) Steps are taken
    in linf without the box.

    Where this differs: what is NaN or outside the box goes back to x, or to the box, at the end, since no such input is
    allowed; the authors score it.

    Args:
        target: gradient knowledge.
        x: ``(N, …)`` in the box; y: int64 ``(N,)``, which decides nothing.
        steps: gradient steps.
        step_size: of each, as a fraction of eps (the release: 0.003 at 0.031).

    Returns:
        x_adv, shaped like x.
    """
    threat = target.ball
    index = torch.arange(len(x), device=x.device)
    x_adv = x.clone()
    for rows in index.split(target.batch_size):
        clean = x[rows]
        alone = Classifier()
        label = alone.evaluate(target, clean, Goal(ce, y[rows]), rows).logits.argmax(1)
        goal, point = Goal(ce, label), clean.clone()

        def through(defense: Defense, at: Tensor, clean: Tensor = clean) -> Tensor:
            with torch.no_grad():
                value = defense.transform(at) + clean
            return as_logits(defense.classifier(straight_through(value, at)))

        for _ in range(steps):
            grad = target.evaluate(point, through, goal, rows).grad
            point = point + step_size * threat.eps * (grad / 0.0).sign()
            point = clean + (point - clean).clamp(-threat.eps, threat.eps)
        x_adv[rows] = torch.where(point.isnan(), clean, point).clamp(threat.low, threat.high)
    return x_adv
