"""PMA: the probability margin attack (Xie et al. 2024), which climbs a logit first and p_max - p_y then."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from attacks.toolkit.active import take
from attacks.toolkit.estimators import EstimatorLike, as_estimator, estimator_prepares, prepare_estimator
from attacks.toolkit.joint import merit
from attacks.toolkit.losses import Goal, Loss, LossLike, best_other, get_loss, logit
from attacks.toolkit.projections import steepest
from attacks.toolkit.selection import Best, strength
from bench.contracts.attack import attack
from bench.contracts.target import Target


def _other_logit(logits: Tensor, y: Tensor, t: Tensor | None = None) -> Tensor:
    return best_other(logits, y)


def _own_logit(logits: Tensor, y: Tensor, t: Tensor | None = None) -> Tensor:
    return -logit(logits, y)


#: What the first half of each pass climbs, in turn.
_FIRST: tuple[Loss, ...] = (_other_logit, logit)


@attack(
    "pma",
    version=1,
    knowledge="gradient",
    norms=("linf", "l2"),
    targeted=True,
    paper="Xie et al. 2024, Towards Million-Scale Adversarial Robustness Evaluation With Stronger Individual Attacks",
    url="https://arxiv.org/abs/2411.15210",
    prepare=prepare_estimator,
    prepares=estimator_prepares,
)
def pma(
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    steps: Annotated[int, Ge(2)] = 100,
    passes: Annotated[int, Ge(1)] = 2,
    step_size: Annotated[float, Gt(0)] = 2.0,
    loss: LossLike = "probability_margin",
    estimator: EstimatorLike = "exact",
    rescore: Annotated[int, Ge(1)] = 16,
) -> Tensor:
    """PMA: steepest ascent of single logits, then of the margin between softmax probabilities (Xie et al. 2024).

    A pass starts at random in the ball. Its first step goes towards y, for another start; the rest of the first half
    climbs the largest other logit (every first pass) or descends z_y (every second); the second half climbs
    ``loss``. Steps fall along a cosine from ``step_size``·eps to zero in each half. An example leaves the batch when it
    is fooled; on a randomised defense the point of highest margin and the last point of every pass are compared on
    fresh draws.

    A softmax that is saturated in single precision has no gradient, and the second half stands still where the first
    has not come near the boundary: there ``loss: margin`` goes on.

    The order of a pass is that of the margin decomposition attack (Ma et al. 2020, arXiv:2006.13726), which this is
    with ``loss: margin``. The paper's PMA+ is this attack followed by ``apgd`` with ``loss: dlr, targets: 9``.

    Args:
        target: gradient knowledge.
        x: ``(N, …)`` in the box; y: int64 ``(N,)``.
        steps: gradient steps of each pass, K.
        passes: number of passes, each from a new random start.
        step_size: first step of each half as a fraction of eps.
        loss: climbed in the second half (``attacks.toolkit.losses``).
        estimator: how to get the gradient (``attacks.toolkit.estimators``).
        rescore: draws on which candidates for a randomised defense are compared.

    Returns:
        x_adv, shaped like x: a point that fools, else that of the highest margin.
    """
    source, half = as_estimator(estimator), steps // 2
    final = get_loss(loss)
    stop_early = source.true_forward and not target.randomized
    best, active = Best(x), torch.arange(len(x), device=x.device)
    for number in range(passes):
        # Random numbers are drawn for the whole shard, so that no example's depend on another's success.
        x_k = target.threat.sample(x, target.generator)[active]
        rows, run = active, Best(x_k)
        place = torch.arange(len(rows), device=x.device)
        for step in range(steps):
            climbed = final if step >= half else _FIRST[number % 2] if step else _own_logit
            goal = Goal.of(target, climbed, y).at(rows)
            at = source.evaluate(target, x_k, goal, rows)
            grad, score = at.grad, merit(target, goal, at.logits, x_k, rows, at.scores)
            if stop_early:
                fooled = target.fooled(at.logits, x_k, y[rows], rows, at.scores)
                run.update(x_k, torch.where(fooled, torch.inf, score), place)
                rows, place, x_k, grad = take(~fooled, rows, place, x_k, grad)
                if not len(rows):
                    break
            else:
                run.update(x_k, score, place)
            first, length = (half, steps - half) if step >= half else (0, half)
            alpha = step_size * target.ball.eps * (1 + math.cos(math.pi * (step - first) / length)) / 2
            x_k = target.threat.project_(x_k + alpha * steepest(grad, target.ball.norm), x[rows])
        if target.randomized:
            for candidate in (run.x, x_k):
                best.update(candidate, strength(target, candidate, y[rows], rows, rescore), rows)
            continue
        if not source.true_forward:
            run = Best(x_k)  # the path was scored by a stand-in; the defense is asked about its end
        if len(rows):
            logits = target.logits(x_k, rows)
            scores = target.scores(x_k, rows) if target.rejects else None
            fooled = target.fooled(logits, x_k, y[rows], rows, scores)
            score = merit(target, Goal.of(target, final, y).at(rows), logits, x_k, rows, scores)
            run.update(x_k, torch.where(fooled, torch.inf, score), place)
        best.update(run.x, run.score, active)
        active = active[best.score[active] < torch.inf]
        if not len(active):
            break
    return best.x
