"""ALMA: the Augmented Lagrangian Method for Adversarial attacks (Rony et al. 2021)."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from attacks.toolkit.estimators import EstimatorLike, as_estimator, estimator_prepares, prepare_estimator
from attacks.toolkit.hyperplanes import TINY, Shortest
from attacks.toolkit.losses import Goal, LossLike, get_loss
from attacks.toolkit.norm_walk import Look, least_radius, walk
from attacks.toolkit.projections import length, per_example
from bench.contracts.attack import attack
from bench.contracts.target import Target

#: Weight of the past in the running means of μ, of squared gradients and of steps (α of the paper).
_PAST = 0.9
#: Range of the multiplier μ, and what keeps the division by the root mean square finite.
_LEAST, _MOST, _SMALL = 1e-6, 1e12, 1e-8
#: Every so many steps ρ grows by a factor where nothing has been adversarial yet and the constraint has not fallen to
#: this share of what it was.
_CHECK, _GROWTH, _IMPROVED = 10, 1.2, 0.95
#: How far beyond the boundary a point has to be, in units of the loss.
_BEYOND = 1e-4


@attack(
    "alma",
    version=1,
    knowledge="gradient",
    norms=("l2",),
    targeted=True,
    minimum_norm=True,
    paper="Rony et al. 2021, Augmented Lagrangian Adversarial Attacks",
    url="https://arxiv.org/abs/2011.11857",
    prepare=prepare_estimator,
    prepares=estimator_prepares,
)
def alma(
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    steps: Annotated[int, Ge(1)] = 300,
    eta: Annotated[float, Gt(0)] = 0.1,
    reduction: Annotated[float, Gt(0), Le(1)] = 0.01,
    loss: LossLike = "margin",
    estimator: EstimatorLike = "exact",
    rescore: Annotated[int, Ge(1)] = 16,
    stop_inside: bool = True,
) -> Tensor:
    """ALMA: ‖δ‖₂ plus a penalty on not being adversarial, whose weight follows the constraint (Rony et al. 2021).

    What is minimised is ‖δ‖₂ + P(c) of the constraint c ≤ 0, with the penalty P2 of the paper: μc + μρc² + ρ²c³/6
    where c is violated, μc/(1-ρc) where it is not. μ follows P'(c); ρ grows where no point has been adversarial and c
    does not fall. The step is RMSProp's with momentum; the first minimises the penalty alone, and so does every step
    inside the ball on a randomised defense, unless ``stop_inside`` is False.

    Where this differs from the paper: the constraint is the margin over the absolute margin at x, which is there for
    two classes too and minds the scale of the logits as little; ``loss: dlr`` is the paper's. On 96 test digits and a
    network trained on clean ones the median (mean) distance after 300 steps is 0.5271 (0.5293), with ``dlr`` 0.5265
    (0.5123), and with ``ddn`` 0.5188 (0.5102).

    Args:
        target: gradient knowledge.
        x: ``(N, …)`` in the box; y: int64 ``(N,)``.
        steps: gradient evaluations. (The paper takes up to 1000.)
        eta: η, size of the first steps of each value, in widths of the box.
        reduction: what is left of η in the end, on an exponential path from the first adversarial point on.
        loss: its negative is the constraint, divided by the absolute loss at x (``attacks.toolkit.losses``).
        estimator: how to get the gradient (``attacks.toolkit.estimators``).
        rescore: draws by which a point is confirmed on a randomised defense.
        stop_inside: an example is finished once its point is inside the ball; False spends all steps on shortening.
            (A randomised defense always gets all of them.)

    Returns:
        x_adv, shaped like x: the shortest adversarial point, moved onto the ball where it is farther; the last point
        where none is adversarial.
    """
    low, high = target.ball.low, target.ball.high
    box = high - low
    best = Shortest(target, x, y, rescore=rescore, stop_inside=stop_inside)
    least = least_radius(best)
    state = _Multipliers(x, steps)
    square, velocity = torch.ones_like(x), torch.zeros_like(x)

    def move(at: Look, radius: Tensor) -> tuple[Tensor, Tensor]:
        rows, delta = at.rows, (at.x_k - at.x) / box
        size = length(delta, "l2")
        weight = state.weigh(at)
        # The distance has no gradient at x, and on a randomised defense none is wanted inside the ball.
        shorter = torch.where(size > max(least / box, TINY), 1 / size.clamp_min(TINY), 0.0)
        scaled = per_example(weight / state.scale[rows] * box, delta)
        grad = per_example(shorter, delta) * delta - scaled * at.grad
        s = square[rows] = _PAST * square[rows] + (1 - _PAST) * grad.square()
        v = velocity[rows] = _PAST * velocity[rows] + grad / s.sqrt().add(_SMALL)
        step = eta * reduction ** state.progress(at)
        return (at.x_k - box * per_example(step, delta) * v).clamp_(low, high), radius

    goal = Goal.of(target, get_loss(loss), y)
    unused = torch.zeros_like(best.distance)  # a radius
    last = walk(best, as_estimator(estimator), (goal, goal), (0.5, 0.5), x, unused, steps, move)
    return best.result(last)


class _Multipliers:
    """Penalty parameter ρ and multiplier μ of each example, ``(N,)``, and when it first was adversarial.

    The penalty of a constraint c ≤ 0 is P(c) = μc + μρc² + ρ²c³/6 for c ≥ 0 and μc/(1 - ρc) below (P2 of the paper).
    """

    def __init__(self, x: Tensor, steps: int) -> None:
        self.steps = steps
        self.rho, self.mu, self.scale, self.before = (x.new_ones(len(x)) for _ in range(4))
        self.found = torch.full((len(x),), steps + 1, device=x.device)

    def weigh(self, at: Look) -> Tensor:
        """P'(c) at the present points, ``(M,)``, after ρ and μ have followed the constraint."""
        rows = at.rows
        loss = at.loss.nan_to_num(nan=0.0)
        if at.step == 0:
            self.scale[rows] = loss.abs().clamp_min(1e-6)
        constraint = _BEYOND - loss / self.scale[rows]
        found = self.found[rows] <= at.step
        if at.step == 0:
            self.before[rows] = constraint
        elif (at.step + 1) % _CHECK == 0:
            stuck = ~found & (constraint >= _IMPROVED * self.before[rows])
            self.rho[rows] *= torch.where(stuck, _GROWTH, 1.0)
            self.before[rows] = constraint
        if at.step:
            slope = _slope(constraint, self.rho[rows], self.mu[rows])
            self.mu[rows] = (_PAST * self.mu[rows] + (1 - _PAST) * slope).clamp(_LEAST, _MOST)
        self.found[rows] = torch.where(at.hit & ~found, at.step, self.found[rows])
        return _slope(constraint, self.rho[rows], self.mu[rows])

    def progress(self, at: Look) -> Tensor:
        """The share of the steps after the first adversarial point that is over, ``(M,)``."""
        found = self.found[at.rows]
        return ((at.step - found).clamp_min(0) / (self.steps - found).abs().clamp_min(1)).to(at.loss.dtype)


def _slope(c: Tensor, rho: Tensor, mu: Tensor) -> Tensor:
    """P'(c) of the penalty with ρ and μ."""
    above = mu + 2 * mu * rho * c + (rho * c).square() / 2
    return torch.where(c >= 0, above, mu / (1 - rho * c.clamp_max(0)).square())
