"""Attacks on a detector that alternate between its gradient and the classifier's (Bryniarski et al. 2021)."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from attacks.toolkit.estimators import Estimator, EstimatorLike, as_estimator, estimator_prepares, prepare_estimator
from attacks.toolkit.joint import merit
from attacks.toolkit.losses import Goal, LossLike, get_loss
from attacks.toolkit.projections import steepest
from attacks.toolkit.selection import Best, strength
from bench.contracts.answers import Evaluation
from bench.contracts.attack import attack
from bench.contracts.errors import NotApplicable
from bench.contracts.target import Target

Mode = Literal["orthogonal", "selective"]


@attack(
    "orthogonal-pgd",
    version=1,
    knowledge="gradient",
    norms=("linf", "l2"),
    targeted=True,
    paper="Bryniarski, Hingun, Pachuca, Wang & Carlini 2021, Evading Adversarial Example Detection Defenses with "
    "Orthogonal Projected Gradient Descent",
    url="https://arxiv.org/abs/2106.15023",
    prepare=prepare_estimator,
    prepares=estimator_prepares,
)
def orthogonal_pgd(
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    mode: Mode = "orthogonal",
    steps: Annotated[int, Ge(1)] = 100,
    step_size: Annotated[float, Gt(0)] = 0.125,
    confidence: Annotated[float, Ge(0)] = 0.05,
    restarts: Annotated[int, Ge(1)] = 1,
    loss: LossLike = "margin",
    estimator: EstimatorLike = "exact",
    rescore: Annotated[int, Ge(1)] = 16,
) -> Tensor:
    """Selective and orthogonal PGD: each step serves the classifier, until it is fooled, or else the detector.

    ``selective`` follows the gradient of the one half alone. ``orthogonal`` takes out of it what it has in common with
    that of the other half, so that a step for the one does not undo what was gained in the other (section 4).

    On a deterministic defense an example leaves the batch once it is fooled and accepted; otherwise the point of the
    largest joint objective is returned.

    Args:
        target: gradient knowledge, of a defense with a detector.
        x: ``(N, …)`` in the box; y: int64 ``(N,)``.
        mode: ``orthogonal`` or ``selective``.
        steps: of each run.
        step_size: as a fraction of eps; the paper's 1/255 of 8/255.
        confidence: by how many logits the classifier has to be fooled for a step to serve the detector.
        restarts: number of runs, the first one from x, the others from random points of the ball.
        loss: of the classifier's half (``attacks.toolkit.losses``).
        estimator: how to get the classifier's gradient (``attacks.toolkit.estimators``).
        rescore: draws on which candidates for a randomised defense are compared.

    Returns:
        x_adv, shaped like x.

    Raises:
        NotApplicable: where there is no detector.
    """
    if target.detection is None:
        raise NotApplicable("there is no detector whose gradient could be taken")
    goal, of, best = Goal.of(target, get_loss(loss), y), as_estimator(estimator), Best(x)
    rows = torch.arange(len(x), device=x.device)
    for restart in range(restarts):
        x_k = (target.threat.sample(x, target.generator) if restart else x)[rows]
        for step in range(steps + 1):
            at, slack = _halves(target, of, x_k, goal.at(rows), rows)
            assert at.scores is not None
            if not target.randomized:
                fooled = target.fooled(at.logits, x_k, y[rows], rows, at.scores)
                value = merit(target, goal.at(rows), at.logits, x_k, rows, at.scores)
                best.update(x_k, torch.where(fooled, torch.inf, value), rows)
                rows, x_k, slack = rows[~fooled], x_k[~fooled], slack[~fooled]
                at = Evaluation(at.loss[~fooled], at.grad[~fooled], at.logits[~fooled], at.scores[~fooled])
            if not len(rows) or step == steps:
                break
            serve_detector = goal.at(rows).margin(at.logits) > confidence
            direction = _direction(at.grad, slack, serve_detector, mode)
            alpha = step_size * target.ball.eps
            x_k = target.threat.project_(x_k + alpha * steepest(direction, target.ball.norm), x[rows])
        if not len(rows):
            break
        if target.randomized:
            best.update(x_k, strength(target, x_k, y[rows], rows, rescore), rows)
    return best.x


def _halves(target: Target, of: Estimator, x: Tensor, goal: Goal, index: Tensor) -> tuple[Evaluation, Tensor]:
    """The classifier's half at ``x`` with the detector's scores, and the gradient of the slack, shaped like x."""
    at = of.evaluate(target.without_detector(), x, goal, index)
    scores, grads = target.score_gradient(x, index)
    return Evaluation(at.loss, at.grad, at.logits, scores), -grads


def _direction(of_loss: Tensor, of_slack: Tensor, serve_detector: Tensor, mode: Mode) -> Tensor:
    """The gradient that a step follows, ``(M, …)``; where that is zero, the other one."""
    one, two = of_loss.flatten(1), of_slack.flatten(1)
    if mode == "orthogonal":
        one, two = _without(one, two), _without(two, one)
    chosen = torch.where(serve_detector[:, None], two, one)
    other = torch.where(serve_detector[:, None], one, two)
    dead = chosen.abs().sum(1, keepdim=True) == 0
    return torch.where(dead, other, chosen).view_as(of_loss)


def _without(grad: Tensor, other: Tensor) -> Tensor:
    """``grad (M, D)`` less its component along ``other (M, D)``."""
    along = (grad * other).sum(1, keepdim=True) / other.square().sum(1, keepdim=True).clamp_min(1e-20)
    return grad - along * other
