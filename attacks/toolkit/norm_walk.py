"""What DDN and FMN share: a walk whose norm shrinks where it fools the defense and grows where it does not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from attacks.toolkit.active import take
from attacks.toolkit.estimators import Estimator
from attacks.toolkit.hyperplanes import Shortest
from attacks.toolkit.losses import Goal


@dataclass(frozen=True)
class Look:
    """What is known of the points of M examples once they have been evaluated.

    Attributes:
        step: counted from 0.
        rows: int64 ``(M,)``, the examples.
        x: ``(M, …)``, the originals; x_k: the points.
        loss: ``(M,)``, at the points; grad: ``(M, …)``.
        hit: bool ``(M,)``, which points are adversarial.
        share: ``(M,)``, by which share the radius is to shrink or grow.
    """

    step: int
    rows: Tensor
    x: Tensor
    x_k: Tensor
    loss: Tensor
    grad: Tensor
    hit: Tensor
    share: Tensor


class Move(Protocol):
    """Where to look next."""

    def __call__(self, at: Look, radius: Tensor) -> tuple[Tensor, Tensor]:
        """The next points ``(M, …)``, which may share memory with nothing of ``at``, and radii ``(M,)``."""
        ...


def least_radius(best: Shortest) -> float:
    """What no radius needs to fall below: eps on a randomised defense, where any point inside the ball will do and the
    one that fools most often counts; else 0."""
    return best.target.ball.eps if best.target.randomized and best.stop_inside else 0.0


def anneal(first: float, last: float, step: int, steps: int) -> float:
    """Half a cosine from ``first`` at step 0 down to ``last`` at step ``steps``."""
    return last + (first - last) * (1 + math.cos(math.pi * step / steps)) / 2


def walk(
    best: Shortest,
    estimator: Estimator,
    goals: tuple[Goal, Goal],
    gammas: tuple[float, float],
    x_k: Tensor,
    radius: Tensor,
    steps: int,
    move: Move,
) -> Tensor:
    """Look and move ``steps`` times, offering every point to ``best``; returns the last points ``(N, …)``.

    Costs ``steps`` gradients and one forward pass for the end of the walk; one more forward pass a step where the
    estimator's logits are not those of the defense, since it is the defense that decides whether to shrink.

    Args:
        goals: what to climb in the first and in the second half.
        gammas: the share by which radii change, in the first half and in the last step. In the second half it falls
            along a cosine where an example has come back across the boundary before; until then it stays as it is, so
            that a boundary is reached that is much nearer than the first radius.
        x_k: ``(N, …)``, where to start; radius: ``(N,)``, to start with.
    """
    target, x = best.target, best.x
    rows, last = torch.arange(len(x), device=x.device), x_k.clone()
    back = torch.zeros_like(rows, dtype=torch.bool)
    for step in range(steps):
        goal = goals[0] if 2 * step < steps else goals[1]
        at = estimator.evaluate(target, x_k, goal.at(rows), rows)
        logits = at.logits if estimator.true_forward else target.logits(x_k, rows)
        loss, grad, hit = at.loss, at.grad, best.offer(x_k, logits, rows)
        going = ~best.done(rows)
        if not going.all():
            parts = (rows, x, x_k, radius, back, loss, grad, hit)
            rows, x, x_k, radius, back, loss, grad, hit = take(going, *parts)
            if not len(rows):
                return last
        back = back | (best.distance[rows].isfinite() & ~hit)
        share = torch.where(back, anneal(*gammas, max(0, 2 * step - steps), steps), gammas[0])
        x_k, radius = move(Look(step, rows, x, x_k, loss, grad, hit, share.to(radius.dtype)), radius)
    best.offer(x_k, target.logits(x_k, rows), rows)
    last[rows] = x_k
    return last
