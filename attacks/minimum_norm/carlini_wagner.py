"""C&W: Adam on the perturbation's size plus c times a loss, in l2, linf and l0 (Carlini & Wagner 2017)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from attacks.toolkit.active import Active
from attacks.toolkit.estimators import Estimator, EstimatorLike, as_estimator, estimator_prepares, prepare_estimator
from attacks.toolkit.hyperplanes import DUAL, TINY, Shortest
from attacks.toolkit.losses import Goal, LossLike, get_loss
from attacks.toolkit.norm_walk import least_radius
from attacks.toolkit.projections import length, over_channels, per_example
from bench.contracts.attack import attack
from bench.contracts.target import Target

#: The box is shrunk by this factor before atanh, so that a value at its edge can leave it within a run.
_SHRINK = 0.99
#: The largest c, as in the authors' code.
_MOST = 1e10
_BETA1, _BETA2 = 0.9, 0.999
#: The first τ after a success, as a share of the distance reached; its root is taken after every failure.
_TAU = 0.9


@attack(
    "cw",
    version=1,
    knowledge="gradient",
    norms=("l2", "linf", "l0"),
    targeted=True,
    minimum_norm=True,
    paper="Carlini & Wagner 2017, Towards Evaluating the Robustness of Neural Networks",
    url="https://arxiv.org/abs/1608.04644",
    prepare=prepare_estimator,
    prepares=estimator_prepares,
)
def carlini_wagner(
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    steps: Annotated[int, Ge(1)] = 100,
    searches: Annotated[int, Ge(1)] = 5,
    step_size: Annotated[float, Gt(0)] = 0.3,
    initial_const: Annotated[float, Ge(0)] = 0.0,
    kappa: Annotated[float, Ge(0)] = 0.0,
    abort_early: bool = True,
    loss: LossLike = "margin",
    estimator: EstimatorLike = "exact",
    rescore: Annotated[int, Ge(1)] = 16,
    stop_inside: bool = True,
) -> Tensor:
    """C&W: Adam on size(δ) + c·max(κ - margin, 0) in the variable w, x + δ = (tanh w + 1)/2 (Carlini & Wagner 2017).

    l2: the size is ‖δ‖₂², and c is searched: ten times as large after a run that fools nowhere, else halfway between
    the largest c that failed and the smallest that did not. linf: the size is Σ max(|δ| - τ, 0); τ falls to 0.9 times
    the distance whenever a point within τ fools, and the next run goes on from there. l0: the size is ‖δ‖₂² over the
    pixels still allowed; whenever a point fools, the pixels of least importance are taken away, 0.3·√(pixels left) at a
    time and at least one. Every example has its own c, τ, pixels and step count, so that none waits for another.

    Where this differs from the paper. c starts at twice what reaches the linearised boundary (l0: 20 times), and the
    step size is relative to the linearised distance and falls along a cosine within a run, which makes both independent
    of the scale of logits and images. The box is shrunk by 1 % before atanh (the rest is clipped), because values at
    its edge would otherwise not move within 100 steps. In linf a value beyond τ is pulled back twice as hard as the
    loss pushes it, whatever c; with one and the same pull for all, values of small gradient stay far below τ, and the
    minimum of a linear model is missed by 12 %. A run that fails in linf moves τ half of the way (in ratio) back to the
    distance; in l0 the next begins at x, with c ten times as large and half as many pixels taken away, down to one,
    which is needed if that fails too. A pixel's importance is the change of the loss that the gradient predicts for
    taking it to the edge of the box, not for its present change; on a linear model that gives the minimum.

    Args:
        target: gradient knowledge.
        x: ``(N, …)`` in the box; y: int64 ``(N,)``.
        steps: of one run; in linf and l0, where runs continue one another, of two.
        searches: values of c (l2; 9 in the paper, of 10,000 steps). In all norms steps · searches is the most gradients
            an example gets.
        step_size: length of Adam's first step, in linearised distances to the boundary; in l0 in units of w.
        initial_const: first c (l2 and l0); 0: from the first gradient.
        kappa: confidence: only points whose margin is at least this count, in logits.
        abort_early: a run in l2 ends where its objective has not fallen by 0.01 % within a tenth of its steps.
        loss: climbed where the margin is below kappa (``attacks.toolkit.losses``).
        estimator: how to get the gradient (``attacks.toolkit.estimators``).
        rescore: draws by which a point is confirmed on a randomised defense.
        stop_inside: an example is finished once its point is inside the ball; False spends the budget on shortening.
            (A randomised defense always gets all of it, and there nothing is shortened within the ball.)

    Returns:
        x_adv, shaped like x: the shortest adversarial point, moved onto the ball where it is farther; the last point
        where none is adversarial.
    """
    best = Shortest(target, x, y, rescore=rescore, stop_inside=stop_inside)
    policy = {"l2": _L2, "linf": _Linf, "l0": _L0}[target.ball.norm]
    search = policy(best, steps, searches, step_size, initial_const, kappa, abort_early)
    return best.result(search.run(Goal.of(target, get_loss(loss), y), as_estimator(estimator)))


@dataclass
class _State(Active):
    """Tensors of the examples still at work, each ``(M, …)``."""

    rows: Tensor
    x: Tensor
    w: Tensor
    mean: Tensor
    square: Tensor
    age: Tensor  # steps of the present run
    const: Tensor
    rate: Tensor  # of Adam, in units of w
    failed: Tensor  # in l2 the largest c that failed
    passed: Tensor  # in l2 the smallest c that did not
    tau: Tensor  # linf; in l2 the objective when it was last compared
    factor: Tensor  # linf: τ as a share of the distance; l0: how many pixels were last taken away
    allowed: Tensor  # l0: pixels, (M, 1, …)
    needed: Tensor  # l0: pixels that failed when they were missing
    kept: Tensor  # l0: the pixels of the last success


class _Search:
    """Runs of Adam, and what happens at their ends."""

    def __init__(
        self,
        best: Shortest,
        steps: int,
        searches: int,
        step_size: float,
        initial_const: float,
        kappa: float,
        abort_early: bool,
    ) -> None:
        self.best, self.budget, self.step_size = best, steps * searches, step_size
        self.steps = max(1, steps // self._division)
        self.searches, self.initial_const, self.kappa, self.abort_early = searches, initial_const, kappa, abort_early
        self.low, self.span = best.target.ball.low, best.target.ball.high - best.target.ball.low
        #: On a randomised defense any point inside the ball will do.
        self.least = least_radius(best)

    def origin(self, x: Tensor) -> Tensor:
        """tanh w at x."""
        return ((x - self.low) * (2 * _SHRINK / self.span)).sub_(_SHRINK)

    def run(self, goal: Goal, estimator: Estimator) -> Tensor:
        """Spend the budget; returns the last points ``(N, …)``."""
        best, target = self.best, self.best.target
        state, last, clean = self._start(), best.x.clone(), True
        for _ in range(self.budget):
            tanh = state.w.tanh()
            points = state.x if clean else self._points(state, tanh)
            goals = goal.at(state.rows)
            at = estimator.evaluate(target, points, goals, state.rows)
            logits = at.logits if estimator.true_forward else target.logits(points, state.rows)
            margin = goals.margin(logits).nan_to_num(nan=0.0)
            hit = self._offer(points, logits, margin, state.rows)
            last[state.rows] = points
            if clean:
                self._calibrate(state, margin, at.grad, tanh)
            short = margin - self.kappa
            pull = self._pull(state, points - state.x, at.grad)
            climb = state.const * ((short <= 0) | (self.least > 0))
            grad = (pull - per_example(climb, pull) * at.grad) * (1 - tanh.square())
            self._adam(state, grad)
            finished = self._ends(state, points, at.grad, hit, short) & (not target.randomized)
            finished |= best.done(state.rows)
            clean = False
            if finished.any():
                state.keep(~finished)
                if not len(state.rows):
                    return last
        return last

    def _start(self) -> _State:
        x = self.best.x
        one, pixels = x.new_ones(len(x)), torch.ones_like(over_channels(x), dtype=torch.bool)
        return _State(
            rows=torch.arange(len(x), device=x.device),
            x=x,
            w=self.origin(x).atanh(),
            mean=torch.zeros_like(x),
            square=torch.zeros_like(x),
            age=torch.zeros_like(one),
            const=one * self.initial_const,
            rate=one * self.step_size,
            failed=torch.zeros_like(one),
            passed=one * self._unsuccessful,
            tau=one * self._first_tau,
            factor=one * _TAU,
            allowed=pixels,
            needed=~pixels,
            kept=pixels,
        )

    #: Runs of ``steps`` divided by this: those that begin where the last one ended are shorter.
    _division = 2
    _unsuccessful, _first_tau = 0.0, 1.0

    def _points(self, state: _State, tanh: Tensor) -> Tensor:
        """Where w leads to, ``tanh`` being that of w."""
        points = tanh.mul(self.span / (2 * _SHRINK)).add_(self.low + self.span / 2)
        return points.clamp_(self.low, self.low + self.span)

    def _offer(self, points: Tensor, logits: Tensor, margin: Tensor, rows: Tensor) -> Tensor:
        if not self.kappa:
            return self.best.offer(points, logits, rows)
        sure = margin >= self.kappa
        hit = sure.clone()
        hit[sure] = self.best.offer(points[sure], logits[sure], rows[sure])
        return hit

    def _calibrate(self, state: _State, margin: Tensor, grad: Tensor, tanh: Tensor) -> None:
        """c and the step size from the first gradient, taken at x."""
        norm = "linf" if isinstance(self, _Linf) else "l2"
        slope, short = length(grad, DUAL[norm]).clamp_min(TINY), (margin - self.kappa).abs()
        flat = slope <= 1e-12
        if not self.initial_const:
            state.const = torch.where(flat, 1.0, self._const(short, slope))
        if not isinstance(self, _L0):
            per_step = length((1 - tanh.square()) * (self.span / 2), norm)
            rate = self.step_size * short / slope / per_step.clamp_min(TINY)
            state.rate = torch.where(flat, self.step_size, rate.clamp(1e-4, 1.0))

    def _const(self, short: Tensor, slope: Tensor) -> Tensor:
        return 4 * short / slope.square()  # twice what reaches the linearised boundary: δ = c·g/2

    def _pull(self, state: _State, delta: Tensor, grad: Tensor) -> Tensor:
        """The gradient of the size in the points."""
        raise NotImplementedError

    def _ends(self, state: _State, points: Tensor, grad: Tensor, hit: Tensor, short: Tensor) -> Tensor:
        """End runs and begin others; bool ``(M,)``: which examples are finished."""
        raise NotImplementedError

    def _adam(self, state: _State, grad: Tensor) -> None:
        state.age += 1
        state.mean.lerp_(grad, 1 - _BETA1)
        state.square.mul_(_BETA2).addcmul_(grad, grad, value=1 - _BETA2)
        falling = 0.01 + 0.99 * (1 + torch.cos(math.pi * (state.age - 1) / self.steps)) / 2
        rate = state.rate * falling / (1 - _BETA1**state.age)
        root = (state.square / per_example(1 - _BETA2**state.age, grad)).sqrt_().add_(TINY)
        state.w = state.w - state.mean / root * per_example(rate, grad)

    def _again(self, state: _State, rows: Tensor, w: Tensor | None) -> None:
        """Begin a run for the rows of a mask, from ``w`` or from where the last one ended."""
        fresh = per_example(rows, state.w)
        if w is not None:
            state.w = torch.where(fresh, w, state.w)
        state.mean, state.square = state.mean.masked_fill(fresh, 0.0), state.square.masked_fill(fresh, 0.0)
        state.age = state.age.masked_fill(rows, 0.0)


class _L2(_Search):
    """Binary search over c."""

    _division = 1
    _unsuccessful, _first_tau = torch.inf, torch.inf

    def _start(self) -> _State:
        state = super()._start()
        self.hits = torch.zeros(len(state.rows), dtype=torch.bool, device=state.rows.device)
        self.runs = torch.zeros_like(state.rows)
        return state

    def _pull(self, state: _State, delta: Tensor, grad: Tensor) -> Tensor:
        self.size = length(delta, "l2")
        return delta * per_example(2.0 * (self.size > self.least), delta)

    def _ends(self, state: _State, points: Tensor, grad: Tensor, hit: Tensor, short: Tensor) -> Tensor:
        self.hits[state.rows] |= hit
        ended = state.age >= self.steps
        every = max(1, self.steps // 10)
        if self.abort_early and not self.least:
            objective = self.size.square() - state.const * short.clamp_max(0.0)
            due = state.age % every == 0
            ended |= due & (objective > 0.9999 * state.tau)
            state.tau = torch.where(due, objective, state.tau)
        if not ended.any():
            return ended
        found = self.hits[state.rows]
        state.passed = torch.where(ended & found, torch.minimum(state.passed, state.const), state.passed)
        state.failed = torch.where(ended & ~found, torch.maximum(state.failed, state.const), state.failed)
        halfway = torch.where(state.passed.isfinite(), (state.failed + state.passed) / 2, 10 * state.const)
        halfway.clamp_max_(_MOST)
        state.const = torch.where(ended, halfway, state.const)
        state.tau = state.tau.masked_fill(ended, torch.inf)
        self.hits[state.rows] = found & ~ended
        self.runs[state.rows] += ended
        self._again(state, ended, self.origin(state.x).atanh())
        return self.runs[state.rows] >= self.searches


class _Linf(_Search):
    """A τ that follows the distance down."""

    def _const(self, short: Tensor, slope: Tensor) -> Tensor:
        return torch.ones_like(slope)

    def _pull(self, state: _State, delta: Tensor, grad: Tensor) -> Tensor:
        beyond = delta.abs() > per_example(state.tau.clamp_min(self.least), delta)
        steep = per_example(state.const, delta) * grad.abs()
        # The second term brings back values on which the loss does not depend.
        return delta.sign() * beyond * (2 * steep + 1e-3 * per_example(length(steep, "linf"), delta))

    def _ends(self, state: _State, points: Tensor, grad: Tensor, hit: Tensor, short: Tensor) -> Tensor:
        distance = length(points - state.x, "linf")
        passed = hit & (distance <= state.tau)
        failed = ~passed & (state.age >= self.steps)
        state.tau = torch.where(passed, state.factor * distance, state.tau)
        if failed.any():
            shortest = self.best.distance[state.rows]
            state.factor = torch.where(failed & shortest.isfinite(), state.factor.sqrt(), state.factor)
            state.tau = torch.where(failed & shortest.isfinite(), state.factor * shortest, state.tau)
        ended = passed | failed
        if ended.any():
            self._again(state, ended, None)
        return state.factor > 0.9999


class _L0(_Search):
    """Pixels taken away for as long as the others suffice."""

    def _start(self) -> _State:
        state = super()._start()
        state.factor = torch.zeros_like(state.factor)
        return state

    def _const(self, short: Tensor, slope: Tensor) -> Tensor:
        return 40 * short / slope.square()  # enough for a twentieth of the pixels

    def _points(self, state: _State, tanh: Tensor) -> Tensor:
        return torch.where(state.allowed, super()._points(state, tanh), state.x)

    def _pull(self, state: _State, delta: Tensor, grad: Tensor) -> Tensor:
        return 2 * delta

    def _ends(self, state: _State, points: Tensor, grad: Tensor, hit: Tensor, short: Tensor) -> Tensor:
        changed = over_channels(points != state.x)
        passed, failed = hit, ~hit & (state.age >= self.steps)
        ended = passed | failed
        if not ended.any():
            return ended
        state.kept = torch.where(per_example(passed, changed), changed, state.kept)
        # What was missing when one pixel alone was taken away is needed.
        alone = failed & (state.factor == 1)
        state.needed = state.needed | (per_example(alone, changed) & state.kept & ~state.allowed)
        left = state.kept.flatten(1).sum(1)
        number = (0.3 * left.to(state.factor.dtype).sqrt()).floor().clamp_min(1)
        number = torch.where(failed, (state.factor / 2).floor().clamp_min(1), number)
        never = failed & (state.factor == 0)  # no success yet: another run, from where this one ended
        number = torch.minimum(number, (left - self.least).clamp_min(0)).masked_fill(never, 0.0)
        state.const = torch.where(failed, 10 * state.const, state.const).clamp_max(_MOST)
        spare = state.kept & ~state.needed
        room = torch.where(grad > 0, self.low + self.span - state.x, state.x - self.low)
        importance = over_channels(grad.abs() * room).masked_fill(~spare, torch.inf)
        rank = importance.flatten(1).argsort(dim=1).argsort(dim=1).view_as(importance)
        fewer = state.kept & ~(spare & (rank < per_example(number, rank)))
        state.allowed = torch.where(per_example(ended, fewer), fewer, state.allowed)
        state.factor = torch.where(ended, number, state.factor)
        self._again(state, passed, None)
        self._again(state, failed & ~never, self.origin(state.x).atanh())
        self._again(state, never, None)
        return ended & ~never & ~spare.flatten(1).any(1)
