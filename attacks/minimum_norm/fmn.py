"""FMN: the Fast Minimum-Norm attack in linf, l2, l1 and l0 (Pintor et al. 2021)."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from attacks.toolkit.estimators import EstimatorLike, as_estimator, estimator_prepares, prepare_estimator
from attacks.toolkit.hyperplanes import DUAL, TINY, Shortest
from attacks.toolkit.losses import Goal, LossLike, get_loss
from attacks.toolkit.norm_walk import Look, anneal, least_radius, walk
from attacks.toolkit.projections import length, over_channels, per_example, steepest
from bench.contracts.attack import attack
from bench.contracts.balls import l1_projection
from bench.contracts.errors import InputError
from bench.contracts.target import Target
from bench.contracts.threat import Lp

#: How far the ball reaches before a first success, in linearised distances to the boundary. (Measured: with the paper's
#: 1, some examples end without success in l2, and distances in l1 are 5 % longer.)
_AHEAD = 5.0
#: Secant steps from a given starting point towards x.
_SEARCH = 10


@attack(
    "fmn",
    version=2,
    knowledge="gradient",
    norms=("linf", "l2", "l1", "l0"),
    targeted=True,
    minimum_norm=True,
    paper="Pintor et al. 2021, Fast Minimum-norm Adversarial Attacks through Adaptive Norm Constraints",
    url="https://arxiv.org/abs/2102.12827",
    prepare=prepare_estimator,
    prepares=estimator_prepares,
)
def fmn(
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    steps: Annotated[int, Ge(1)] = 100,
    alpha: Annotated[float, Gt(0)] = 1.0,
    alpha_final: Annotated[float, Ge(0)] = 0.01,
    gamma: Annotated[float, Gt(0), Lt(1)] = 0.05,
    gamma_final: Annotated[float, Ge(0), Lt(1)] = 0.005,
    loss: LossLike = "log_odds",
    late_loss: LossLike = "margin",
    start: Tensor | None = None,
    estimator: EstimatorLike = "exact",
    rescore: Annotated[int, Ge(1)] = 16,
    stop_inside: bool = True,
) -> Tensor:
    """FMN: normalised gradient steps inside a ball that shrinks or grows by γ (Pintor et al. 2021, algorithm 1).

    δ moves by α along the gradient and is projected onto the ball. Until a first point is adversarial, the ball reaches
    a few times the linearised distance beyond the boundary; from then on its radius is multiplied by 1-γ (and cut to
    the shortest distance) where the point is adversarial and by 1+γ where it is not. In l0 the radius is a number of
    pixels, at first 1, and changes by at least one. α falls along a cosine, and so does γ in the second half
    where an example has come back across the boundary: falling from then on, it would leave linf at 0.0033 in place of
    0.0029 on an undefended ResNet-8 for CIFAR-10 (mean of 46 images).

    Where this differs from the paper, with the median (mean) distance over 446 test digits on an adversarially
    trained CNN in 100 steps, before and after (γ falling from the first return on). The first half climbs the log
    odds, not the margin, and the first balls reach 5 times as far as the linearised boundary, not once: l2 0.7212
    (0.7114) to 0.7015 (0.6842), l1 1.338 (1.430) to 1.216 (1.320). In linf the step, of the same l2 length, goes
    along the sign of the gradient: with the former 0.2353 (0.2191) to 0.2205 (0.2060). In l0 a step moves every
    value by α times the width of the box, and those pixels are kept whose change gains most to first order, Σ g·δ
    over the channels, not the largest ones: 2 (2.90) to 2 (2.06) pixels. The paper counts values in l0; here pixels
    count, as in the threat model. On a randomised defense no radius falls below eps, unless ``stop_inside`` is
    False.

    Args:
        target: gradient knowledge.
        x: ``(N, …)`` in the box; y: int64 ``(N,)``.
        steps: gradient evaluations.
        alpha: length of the first step in l2 (l0: of each value), in widths of the box.
        alpha_final: of the last.
        gamma: share by which the radius changes in the first half.
        gamma_final: share by which it changes in the last.
        loss: climbed in the first half (``attacks.toolkit.losses``).
        late_loss: climbed in the second half.
        start: shaped like x, points to start from, each drawn towards x first by 10 secant steps, at 12 forward
            passes in all; None: x.
        estimator: how to get the gradient (``attacks.toolkit.estimators``).
        rescore: draws by which a point is confirmed on a randomised defense.
        stop_inside: an example is finished once its point is inside the ball; False spends all steps on shortening.
            (A randomised defense always gets all of them.)

    Returns:
        x_adv, shaped like x: the shortest adversarial point, moved onto the ball where it is farther; the last point
        where none is adversarial.
    """
    threat = target.ball
    goals = Goal.of(target, get_loss(loss), y), Goal.of(target, get_loss(late_loss), y)
    best = Shortest(target, x, y, rescore=rescore, stop_inside=stop_inside)
    sparse, least = threat.norm == "l0", least_radius(best)
    box, pixels = threat.high - threat.low, over_channels(x[:1]).numel()

    def move(at: Look, radius: Tensor) -> tuple[Tensor, Tensor]:
        x, shortest, size = at.x, best.distance[at.rows], anneal(alpha, alpha_final, at.step, steps) * box
        if sparse:
            fewer = torch.minimum(torch.minimum(radius, shortest) - 1, (radius * (1 - at.share)).floor())
            more = torch.maximum(radius + 1, (radius * (1 + at.share)).floor())
            radius = torch.where(at.hit, fewer, more).clamp_(max(1, int(least)), pixels)
            moved = (at.x_k + size * at.grad.sign()).clamp_(threat.low, threat.high)
            gain = over_channels((moved - x).mul_(at.grad))
            return torch.where(_largest(gain, radius), moved, x), radius
        delta = at.x_k - x
        slope = length(at.grad, DUAL[threat.norm]).clamp_min(TINY)
        ahead = length(delta, threat.norm) + _AHEAD * (at.loss.abs() / slope).nan_to_num(nan=torch.inf)
        outwards = torch.where(shortest.isfinite(), radius * (1 + at.share), ahead)
        radius = torch.where(at.hit, torch.minimum(radius * (1 - at.share), shortest), outwards).clamp_min(least)
        if threat.norm == "linf":
            direction = at.grad.sign() / math.sqrt(x[0].numel())
        else:
            direction = steepest(at.grad, "l2")
        delta = _onto_ball(delta.add_(direction, alpha=size), radius, x, threat)
        return delta.add_(x).clamp_(threat.low, threat.high), radius

    x_k, radius = x, x.new_full((len(x),), 1.0 if sparse else math.inf)
    if start is not None:
        if start.shape != x.shape:
            raise InputError(f"fmn.start: expected the shape of x {tuple(x.shape)}, got {tuple(start.shape)}")
        everyone = torch.arange(len(x), device=x.device)
        best.offer(start, target.logits(start), everyone)
        best.shorten(goals[1], goals[1].margin(target.logits(x)), everyone, _SEARCH)
        x_k = torch.where(per_example(best.distance.isfinite(), x), best.points, x)
        radius = length(x_k - x, "l0").clamp_min(1) if sparse else radius
    last = walk(best, as_estimator(estimator), goals, (gamma, gamma_final), x_k, radius, steps, move)
    return best.result(last)


def _onto_ball(delta: Tensor, radius: Tensor, x: Tensor, threat: Lp) -> Tensor:
    """``delta (M, …)`` projected onto the balls of ``radius (M,)`` in linf, l2 or l1."""
    if threat.norm == "linf":
        bound = per_example(radius, delta)
        return torch.clamp(delta, -bound, bound)
    if threat.norm == "l2":
        return delta.mul_(per_example((radius / length(delta, "l2").clamp_min(TINY)).clamp_max(1.0), delta))
    return l1_projection(delta, threat.low - x, threat.high - x, radius)


def _largest(score: Tensor, count: Tensor) -> Tensor:
    """Bool, shaped like ``score (M, 1, …)``: the ``count (M,)`` pixels of highest score in each row."""
    order = score.flatten(1).argsort(dim=1, descending=True, stable=True)
    chosen = torch.arange(order.shape[1], device=order.device) < count[:, None]
    return torch.zeros_like(chosen).scatter_(1, order, chosen).view_as(score)
