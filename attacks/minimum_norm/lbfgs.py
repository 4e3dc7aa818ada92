"""Box-constrained L-BFGS: the first attack on neural networks (Szegedy et al. 2014), batched over images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from attacks.toolkit.active import Active
from attacks.toolkit.estimators import EstimatorLike, as_estimator, estimator_prepares, prepare_estimator
from attacks.toolkit.hyperplanes import TINY, Shortest
from attacks.toolkit.losses import Goal, LossLike, get_loss
from attacks.toolkit.norm_walk import least_radius
from attacks.toolkit.selection import ranked_classes
from bench.contracts.attack import attack
from bench.contracts.target import Target
from bench.contracts.threat import Lp

#: Share of the linear decrease that a step must achieve (Armijo).
_SUFFICIENT = 1e-4
#: A run ends when a step moves by less than this share of the perturbation's length, or has been halved so far.
_SHORT, _HALVED = 1e-3, 2.0**-10


@attack(
    "lbfgs",
    version=1,
    knowledge="gradient",
    norms=("l2",),
    targeted=True,
    minimum_norm=True,
    paper="Szegedy et al. 2014, Intriguing Properties of Neural Networks",
    url="https://arxiv.org/abs/1312.6199",
    prepare=prepare_estimator,
    prepares=estimator_prepares,
)
def lbfgs(
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    steps: Annotated[int, Ge(1)] = 30,
    searches: Annotated[int, Ge(1)] = 10,
    history: Annotated[int, Ge(1)] = 8,
    initial_const: Annotated[float, Ge(0)] = 0.0,
    loss: LossLike = "ce",
    estimator: EstimatorLike = "exact",
    rescore: Annotated[int, Ge(1)] = 16,
    stop_inside: bool = True,
) -> Tensor:
    """L-BFGS: minimise ‖r‖₂²/c - loss(x + r, t) within the box, and search c (Szegedy et al. 2014, section 4.1).

    The loss is log p_t, t being the class to reach, or, in the untargeted form that the paper lacks, the class ranked
    highest after y at x (at the price of a forward pass). c becomes ten times as large after a run that fools nowhere
    and a tenth after one that does, until both have happened; then it is halved in ratio.

    Projected L-BFGS: the two-loop recursion over the values that are not held at the edge of the box, a step along it
    clipped to the box, halved until the objective falls enough. All images run side by side, each with its own c,
    step length and history.

    Where this differs from the paper: the size is squared, which makes it smooth at x; c starts where the linearised
    loss would just reach the boundary; a run begins where the last one ended, since its minimum is near.

    Args:
        target: gradient knowledge.
        x: ``(N, …)`` in the box; y: int64 ``(N,)``.
        steps: gradient evaluations of one run, halved steps included.
        searches: values of c.
        history: pairs of steps and gradient changes that are remembered.
        initial_const: first c; 0: from the first gradient.
        loss: maximised (``attacks.toolkit.losses``).
        estimator: how to get the gradient (``attacks.toolkit.estimators``).
        rescore: draws by which a point is confirmed on a randomised defense.
        stop_inside: an example is finished once its point is inside the ball; False spends all runs on shortening.
            (A randomised defense always gets all of them, and there nothing is shortened within the ball.)

    Returns:
        x_adv, shaped like x: the shortest adversarial point, moved onto the ball where it is farther; the last point
        where none is adversarial.
    """
    estimator = as_estimator(estimator)
    best = Shortest(target, x, y, rescore=rescore, stop_inside=stop_inside)
    least = least_radius(best)
    goal = Goal.of(target, get_loss(loss), y)
    if not goal.reach:
        goal = goal.towards(ranked_classes(target.logits(x), y, 1)[0])
    rows, points, last, state = torch.arange(len(x), device=x.device), x, x.clone(), None
    for _ in range(steps * searches):
        goals = goal.at(rows)
        at = estimator.evaluate(target, points, goals, rows)
        logits = at.logits if estimator.true_forward else target.logits(points, rows)
        hit = best.offer(points, logits, rows)
        last[rows] = points
        if state is None:
            const = _first_const(goals, logits, at.grad, initial_const)
            state = _State.start(x, const, at.loss, at.grad, history)
        else:
            _take(state, points, at.loss, at.grad, hit, least)
        finished = _ends(state, steps, searches) & (not target.randomized) | best.done(rows)
        if finished.any():
            rows = rows[~finished]
            state.keep(~finished)
            if not len(rows):
                break
        points = _trial(state, target.ball, least)
    return best.result(last)


@dataclass
class _State(Active):
    """Tensors of the examples still at work, ``(M, …)``; what is D long is flattened."""

    x: Tensor  # (M, C, H, W)
    point: Tensor  # (M, D), the last point accepted
    loss: Tensor
    grad: Tensor  # (M, D), of the loss
    const: Tensor
    failed: Tensor  # the largest c that fooled nowhere
    passed: Tensor  # the smallest c that did
    fooled: Tensor  # in this run
    runs: Tensor
    age: Tensor  # trials of this run
    length: Tensor  # of the step, 1 being the quasi-Newton step
    stalled: Tensor  # whether the run has converged
    steps: Tensor  # (M, history, D), the latest last
    changes: Tensor  # (M, history, D), of the objective's gradient
    curvature: Tensor  # (M, history), 1/(step·change); 0 where nothing is remembered

    @classmethod
    def start(cls, x: Tensor, const: Tensor, loss: Tensor, grad: Tensor, history: int) -> _State:
        flat, no = x.flatten(1), torch.zeros_like(const, dtype=torch.bool)
        memory = flat.new_zeros(len(flat), history, flat.shape[1])
        zero = torch.zeros_like(const)
        return cls(
            x=x, point=flat, loss=loss, grad=grad.flatten(1), const=const, failed=zero,
            passed=torch.full_like(const, torch.inf), fooled=no, runs=zero, age=zero, length=torch.ones_like(const),
            stalled=no, steps=memory, changes=memory.clone(),
            curvature=flat.new_zeros(len(flat), history),
        )  # fmt: skip


def _first_const(goal: Goal, logits: Tensor, grad: Tensor, given: float) -> Tensor:
    """c for which the minimum of ‖r‖²/c - g·r, r = c·g/2, closes the margin; ``given`` unless that is 0."""
    square = grad.flatten(1).square().sum(1)
    short = goal.margin(logits).abs().nan_to_num(nan=1.0)
    first = torch.where(square > TINY, 2 * short / square.clamp_min(TINY), 1.0)
    return torch.full_like(first, given) if given else first.clamp(1e-10, 1e10)


def _objective(state: _State, point: Tensor, loss: Tensor, grad: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """‖r‖² - c·loss and its gradient; within ``least`` of x the length does not count."""
    delta = point - state.x.flatten(1)
    size = delta.square().sum(1)
    outside = size > least**2
    value = (size - least**2) * outside - state.const * loss
    return value, 2 * delta * outside[:, None] - state.const[:, None] * grad


def _take(state: _State, points: Tensor, loss: Tensor, grad: Tensor, hit: Tensor, least: float) -> None:
    """Accept the trial ``points`` or halve the step."""
    point, grad = points.flatten(1), grad.flatten(1)
    before, slope = _objective(state, state.point, state.loss, state.grad, least)
    after, slope_after = _objective(state, point, loss, grad, least)
    step = point - state.point
    better = after <= before + _SUFFICIENT * (slope * step).sum(1)
    state.age = state.age + 1
    state.fooled = state.fooled | hit
    moved, so_far = step.norm(dim=1), (point - state.x.flatten(1)).norm(dim=1)
    state.length = torch.where(better, 1.0, state.length / 2)
    state.stalled = (better & (moved <= _SHORT * so_far)) | (state.length < _HALVED)
    change = slope_after - slope
    product = (step * change).sum(1)
    curved = better & (product > 1e-10 * change.square().sum(1))
    remember = curved[:, None, None]
    state.steps = torch.where(remember, torch.cat([state.steps[:, 1:], step[:, None]], 1), state.steps)
    state.changes = torch.where(remember, torch.cat([state.changes[:, 1:], change[:, None]], 1), state.changes)
    inverse = torch.where(curved, 1 / product.clamp_min(TINY), 0.0)
    shifted = torch.cat([state.curvature[:, 1:], inverse[:, None]], 1)
    state.curvature = torch.where(curved[:, None], shifted, state.curvature)
    state.point = torch.where(better[:, None], point, state.point)
    state.grad = torch.where(better[:, None], grad, state.grad)
    state.loss = torch.where(better, loss, state.loss)


def _ends(state: _State, steps: int, searches: int) -> Tensor:
    """Go on to the next c where a run is over; bool ``(M,)``: where that was the last."""
    over = state.stalled | (state.age >= steps)
    if not over.any():
        return over
    state.passed = torch.where(over & state.fooled, torch.minimum(state.passed, state.const), state.passed)
    state.failed = torch.where(over & ~state.fooled, torch.maximum(state.failed, state.const), state.failed)
    between = (state.failed * state.passed).sqrt()
    outside = torch.where(state.passed.isfinite(), state.passed / 10, state.failed * 10)
    bracketed = (state.failed > 0) & state.passed.isfinite()
    state.const = torch.where(over, torch.where(bracketed, between, outside), state.const).clamp(1e-12, 1e12)
    state.runs = state.runs + over.to(state.runs.dtype)
    state.age, state.length = state.age.masked_fill(over, 0.0), state.length.masked_fill(over, 1.0)
    state.fooled, state.stalled = state.fooled & ~over, torch.zeros_like(over)
    state.curvature = state.curvature.masked_fill(over[:, None], 0.0)  # of another objective
    return state.runs >= searches


def _trial(state: _State, threat: Lp, least: float) -> Tensor:
    """The next points ``(M, C, H, W)`` to evaluate."""
    slope = _objective(state, state.point, state.loss, state.grad, least)[1]
    held = ((state.point <= threat.low) & (slope > 0)) | ((state.point >= threat.high) & (slope < 0))
    slope = slope.masked_fill(held, 0.0)
    direction = _two_loops(state, slope).masked_fill(held, 0.0)
    # Without descent: the gradient, for which 1/2 is the inverse curvature of ‖r‖².
    uphill = (direction * slope).sum(1) <= 0
    direction = torch.where(uphill[:, None], slope / 2, direction)
    points = state.point - state.length[:, None] * direction
    return points.clamp_(threat.low, threat.high).view_as(state.x)


def _two_loops(state: _State, slope: Tensor) -> Tensor:
    """The inverse Hessian times ``slope (M, D)`` (Nocedal & Wright, algorithm 7.4)."""
    number = state.curvature.shape[1]
    result, shares = slope, []
    for k in reversed(range(number)):
        share = state.curvature[:, k] * (state.steps[:, k] * result).sum(1)
        result = result - share[:, None] * state.changes[:, k]
        shares.append(share)
    latest = state.changes[:, -1].square().sum(1) * state.curvature[:, -1]
    result = result * torch.where(latest > 0, 1 / latest.clamp_min(TINY), 0.5)[:, None]
    for k in range(number):
        share = shares[number - 1 - k] - state.curvature[:, k] * (state.changes[:, k] * result).sum(1)
        result = result + share[:, None] * state.steps[:, k]
    return result
