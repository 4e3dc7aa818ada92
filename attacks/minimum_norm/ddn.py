"""DDN: the Decoupled Direction and Norm attack (Rony et al. 2019)."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from attacks.toolkit.estimators import EstimatorLike, as_estimator, estimator_prepares, prepare_estimator
from attacks.toolkit.hyperplanes import TINY, Shortest
from attacks.toolkit.losses import Goal, LossLike, get_loss
from attacks.toolkit.norm_walk import Look, anneal, least_radius, walk
from attacks.toolkit.projections import length, per_example, steepest
from bench.contracts.attack import attack
from bench.contracts.target import Target


@attack(
    "ddn",
    version=2,
    knowledge="gradient",
    norms=("l2",),
    targeted=True,
    minimum_norm=True,
    paper="Rony et al. 2019, Decoupling Direction and Norm for Efficient Gradient-Based L2 Adversarial Attacks",
    url="https://arxiv.org/abs/1811.09600",
    prepare=prepare_estimator,
    prepares=estimator_prepares,
)
def ddn(
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    steps: Annotated[int, Ge(1)] = 100,
    gamma: Annotated[float, Gt(0), Lt(1)] = 0.05,
    gamma_final: Annotated[float, Ge(0), Lt(1)] = 0.005,
    init_norm: Annotated[float, Gt(0)] = 1.0,
    loss: LossLike = "log_odds",
    late_loss: LossLike = "margin",
    levels: Annotated[int, Ge(0)] = 0,
    estimator: EstimatorLike = "exact",
    rescore: Annotated[int, Ge(1)] = 16,
    stop_inside: bool = True,
) -> Tensor:
    """DDN: normalised gradient steps on a sphere that shrinks or grows by γ (Rony et al. 2019, algorithm 1).

    δ moves by α·g/‖g‖₂, α falling from 1 to 0.01 along a cosine, and is then scaled to the radius, which is multiplied
    by 1-γ where the point is adversarial and by 1+γ where it is not.

    Where this differs from the paper: in the second half γ falls along a cosine where an example has come back across
    the boundary, and the margin is climbed. On 446 test digits and an adversarially trained CNN (100 steps) the median
    distance goes from 0.6871 (γ constant, CE alone) to 0.6861 and the mean from 0.6900 to 0.6868. On an undefended
    ResNet-8 for CIFAR-10, whose boundary is ten times nearer than the first radius, γ must not fall earlier: it would
    make the mean 0.119 in place of 0.106 (46 images). In the first half the log odds stand for CE, whose direction they
    have without its saturation. On a randomised defense no radius falls below eps, unless ``stop_inside`` is False.

    Args:
        target: gradient knowledge.
        x: ``(N, …)`` in the box; y: int64 ``(N,)``.
        steps: gradient evaluations.
        gamma: share by which the radius changes in the first half.
        gamma_final: share by which it changes in the last.
        init_norm: first radius, in l2, in widths of the box; so is α.
        loss: climbed in the first half (``attacks.toolkit.losses``).
        late_loss: climbed in the second half.
        levels: when above 0, every point is rounded to this many equally spaced values per channel (256 for images
            of 8 bits).
        estimator: how to get the gradient (``attacks.toolkit.estimators``).
        rescore: draws by which a point is confirmed on a randomised defense.
        stop_inside: an example is finished once its point is inside the ball; False spends all steps on shortening.
            (A randomised defense always gets all of them.)

    Returns:
        x_adv, shaped like x: the shortest adversarial point, moved onto the ball where it is farther; the last point
        where none is adversarial.
    """
    low, high = target.ball.low, target.ball.high
    best = Shortest(target, x, y, rescore=rescore, stop_inside=stop_inside)
    farthest = length(torch.maximum(x - low, high - x), "l2")

    def move(at: Look, radius: Tensor) -> tuple[Tensor, Tensor]:
        radius = (radius * torch.where(at.hit, 1 - at.share, 1 + at.share)).clamp_min(least_radius(best))
        radius = torch.minimum(radius, farthest[at.rows])
        delta = (at.x_k - at.x).add_(steepest(at.grad, "l2"), alpha=anneal(1.0, 0.01, at.step, steps) * (high - low))
        delta *= per_example(radius / length(delta, "l2").clamp_min(TINY), delta)
        points = delta.add_(at.x).clamp_(low, high)
        return (_rounded(points, levels, low, high) if levels else points), radius

    goals = Goal.of(target, get_loss(loss), y), Goal.of(target, get_loss(late_loss), y)
    radius = x.new_full((len(x),), init_norm * (high - low))
    last = walk(best, as_estimator(estimator), goals, (gamma, gamma_final), x, radius, steps, move)
    return best.result(last)


def _rounded(points: Tensor, levels: int, low: float, high: float) -> Tensor:
    unit = (high - low) / max(1, levels - 1)
    return (low + ((points - low) / unit).round() * unit).clamp_(low, high)
