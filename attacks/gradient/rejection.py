"""Nearly clean inputs that a detector rejects: what the stratified robust accuracy counts as errors."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from attacks.toolkit.active import take
from attacks.toolkit.joint import score_slope
from attacks.toolkit.losses import repeat
from attacks.toolkit.projections import steepest
from attacks.toolkit.selection import Best
from bench.contracts.attack import attack
from bench.contracts.errors import NotApplicable
from bench.contracts.target import Target


@attack(
    "rejection",
    version=1,
    knowledge="gradient",
    norms=("linf", "l2"),
    seeks="rejection",
    paper="this project; the error it looks for: Chen et al. 2023, Stratified Adversarial Robustness with Rejection",
    url="https://arxiv.org/abs/2305.01139",
)
def rejection(
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    within: Annotated[float, Gt(0), Le(1)] = 0.25,
    steps: Annotated[int, Ge(1)] = 20,
    step_size: Annotated[float, Gt(0)] = 1.0,
    restarts: Annotated[int, Ge(1)] = 2,
    draws: Annotated[int, Ge(1)] = 8,
) -> Tensor:
    """Ascent of the detector's score in a small ball, until a nearly clean input is rejected (Chen et al. 2023).

    An input this near to a clean one should be classified; a detector that rejects it has failed, whatever it catches
    farther away. Neither the class nor the classifier matters: steepest ascent of the score, projected onto the ball
    and the box, with steps that fall linearly. A score without a gradient is differenced.

    On a deterministic detector an example leaves the batch once it is rejected, a clean input that is rejected at once;
    on a randomised one the point of the largest mean score is returned.

    Args:
        target: gradient knowledge, of a defense with a detector.
        x: ``(N, …)`` in the box; y: int64 ``(N,)``, not looked at.
        within: radius as a share of eps.
        steps: gradient steps of each run.
        step_size: first step as a share of that radius.
        restarts: number of runs, the first one from x, the others from random points of the small ball.
        draws: of a randomised score and its gradient, averaged.

    Returns:
        x_adv, shaped like x.

    Raises:
        NotApplicable: where there is no detector.
    """
    if target.detection is None:
        raise NotApplicable("there is no detector that could reject")
    ball = target.ball
    near = dataclasses.replace(ball, eps=within * ball.eps)
    repeats, best = draws if target.randomized else 1, Best(x)
    active = torch.arange(len(x), device=x.device)
    for restart in range(restarts):
        start = near.sample(x, target.generator) if restart else x
        rows, x_k = active, start[active]
        for step in range(steps):
            each, slopes = score_slope(target, repeat(x_k, repeats), rows.repeat(repeats))
            scores, grad = each.view(repeats, -1).mean(0), slopes.view(repeats, *x_k.shape).mean(0)
            best.update(x_k, scores.to(x), rows)
            if not target.randomized:
                rows, x_k, grad = take(target.detection.accepts(scores), rows, x_k, grad)
            if not len(rows):
                break
            alpha = step_size * (1 - step / steps) * near.eps
            x_k = near.project_(x_k + alpha * steepest(grad, near.norm), x[rows])
        if len(rows):
            best.update(x_k, target.scores(x_k, rows, draws=repeats).to(x), rows)
        if not target.randomized:
            active = active[target.detection.accepts(best.score[active])]
        if not len(active):
            break
    return best.x
