"""Projected gradient descent with any loss and any gradient estimator (Madry et al. 2018)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from attacks.toolkit.active import take
from attacks.toolkit.estimators import Estimator, EstimatorLike, as_estimator, estimator_prepares, prepare_estimator
from attacks.toolkit.joint import merit
from attacks.toolkit.losses import Goal, LossLike, get_loss
from attacks.toolkit.masks import MaskLike, as_mask, fitted
from attacks.toolkit.projections import l1_unit, movable, steepest, top_signs
from attacks.toolkit.selection import Best, classes_to_reach, strength
from bench.contracts.attack import attack
from bench.contracts.target import Target

Schedule = Literal["constant", "linear", "cosine"]
Direction = Literal["steepest", "sign", "gradient"]
#: In l1 the first and the last step move so many times eps values; in between the number falls geometrically.
_WIDEST, _NARROWEST = 8.0, 0.5


def _decay(schedule: Schedule, step: int, steps: int) -> float:
    if schedule == "constant":
        return 1.0
    if schedule == "linear":
        return 1 - step / steps
    return 0.5 * (1 + math.cos(math.pi * step / steps))


@attack(
    "pgd",
    version=1,
    knowledge="gradient",
    norms=("linf", "l2", "l1"),
    targeted=True,
    paper="Madry et al. 2018, Towards Deep Learning Models Resistant to Adversarial Attacks",
    url="https://arxiv.org/abs/1706.06083",
    prepare=prepare_estimator,
    prepares=estimator_prepares,
)
def pgd(
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    steps: Annotated[int, Ge(1)] = 40,
    step_size: Annotated[float, Gt(0)] = 1.0,
    schedule: Schedule = "cosine",
    restarts: Annotated[int, Ge(1)] = 1,
    random_start: bool = True,
    loss: LossLike = "margin",
    targets: Annotated[int, Ge(0)] = 0,
    momentum: Annotated[float, Ge(0)] = 0.0,
    direction: Direction = "steepest",
    mask: MaskLike = None,
    estimator: EstimatorLike = "exact",
    rescore: Annotated[int, Ge(1)] = 16,
) -> Tensor:
    """PGD: steepest ascent of a loss, projected onto the ball and the box after every step (Madry et al. 2018).

    x_{k+1} = Π(x_k + α_k · eps · s(g_k)) with s the sign (linf) or g/‖g‖₂ (l2). In l1 s is ±1/n on the n values of
    largest gradient that can still move inside the box, as in SLIDE (Tramèr & Boneh 2019), where n is a fixed share
    of the values; here it falls from 8·eps to eps/2, for the corners of an l1 ball of radius eps have few values.
    With a deterministic defense an example leaves the batch when it is fooled; otherwise the point of highest loss
    is returned. With a randomised defense the point of highest loss and the last point of every run are compared on
    fresh draws.

    Args:
        target: gradient knowledge.
        x: ``(N, …)`` in the box; y: int64 ``(N,)``.
        steps: gradient steps of each run.
        step_size: first step as a fraction of eps.
        schedule: how the step size falls: ``constant``, ``linear`` or ``cosine`` (both to zero).
        restarts: number of runs, each from a new random start.
        random_start: start uniformly in the ball instead of at x.
        loss: what to maximise (``attacks.toolkit.losses``).
        targets: when above 0, every restart is run once towards each of this many classes, those the defense
            ranks highest after y (multi-targeted, Gowal et al. 2019).
        momentum: μ of MI-FGSM (Dong et al. 2018): the direction is the sum of L1-normalised gradients, decayed.
        direction: ``steepest`` is s above; ``sign`` steps along the sign of the gradient in every norm (with
            ``loss: ce`` the CE-sign of Ozbulak et al. 2020), ``gradient`` along the gradient as it is, its length
            included; the step is then step_size·eps times that.
        mask: which values may change, 0 or 1 in a shape that broadcasts to ``(C, H, W)``: a tensor or nested lists;
            None: all (masked PGD, Hwang et al. 2019).
        estimator: how to get the gradient (``attacks.toolkit.estimators``).
        rescore: draws on which candidates for a randomised defense are compared.

    Returns:
        x_adv, shaped like x.
    """
    goal = Goal.of(target, get_loss(loss), y)
    allowed = fitted(as_mask(mask), x)
    ascent = Ascent(as_estimator(estimator), steps, step_size, schedule, momentum, direction, allowed)
    best = Best(x)
    active = torch.arange(len(x), device=x.device)
    for restart in range(restarts):
        for towards in classes_to_reach(target, x, y, targets, rescore)[0]:
            # Random numbers are drawn for the whole shard, so that no example's depend on another's success.
            start = target.threat.sample(x, target.generator) if random_start or restart > 0 else x
            if allowed is not None:
                start = torch.where(allowed, start, x)
            run, last = ascent.run(target, x[active], start[active], goal.towards(towards).at(active), active)
            if target.randomized:
                for candidate in (run.x, last):
                    best.update(candidate, strength(target, candidate, y[active], active, rescore), active)
            else:
                best.update(run.x, run.score, active)
                active = active[best.score[active] < torch.inf]
            if not len(active):
                return best.x
    return best.x


@dataclass(frozen=True)
class Ascent:
    """One run of projected ascent."""

    estimator: Estimator
    steps: int
    step_size: float
    schedule: Schedule
    momentum: float = 0.0
    direction: Direction = "steepest"
    mask: Tensor | None = None

    def run(self, target: Target, x: Tensor, start: Tensor, goal: Goal, index: Tensor) -> tuple[Best, Tensor]:
        """The best point on the path of each row, scored by the margin (∞ once fooled), and the last points.

        The last points are those of all rows unless rows leave early.
        """
        stop_early = self.estimator.true_forward and not target.randomized
        best = Best(start)
        rows = torch.arange(len(x), device=x.device)
        x_k, velocity = start.clone(), torch.zeros_like(x)
        for step in range(self.steps):
            at = self.estimator.evaluate(target, x_k, goal, index)
            grad = at.grad
            if stop_early:
                fooled = self._record(best, target, at.logits, x_k, goal, index, rows, at.scores)
                if fooled.any():
                    if fooled.all():
                        return best, x_k
                    # Only now are the survivors put together again: between two successes nothing is copied.
                    parts = (rows, index, x, x_k, velocity, grad, goal)
                    rows, index, x, x_k, velocity, grad, goal = take(~fooled, *parts)
            else:
                best.update(x_k, merit(target, goal, at.logits, x_k, index, at.scores), rows)
            if self.mask is not None:
                grad = grad * self.mask
            if self.momentum:
                velocity = grad = self.momentum * velocity + l1_unit(grad)
            alpha = self.step_size * _decay(self.schedule, step, self.steps) * target.ball.eps
            x_k = target.threat.project_(x_k + alpha * self._along(grad, x_k, target, step), x)
        if stop_early:
            self._record(best, target, target.logits(x_k, index), x_k, goal, index, rows)
        elif not target.randomized:
            # The path was scored by a stand-in for the defense. Its end is its best point; what the defense makes
            # of that is asked once, so that restarts can be compared.
            best = Best(start)
            self._record(best, target, target.logits(x_k, index), x_k, goal, index, rows)
        return best, x_k

    def _along(self, grad: Tensor, x_k: Tensor, target: Target, step: int) -> Tensor:
        """The direction of a step, of unit norm unless told otherwise."""
        threat = target.ball
        if self.direction == "gradient":
            return grad
        if self.direction == "sign":
            return grad.sign()
        if threat.norm == "l1":
            width = _WIDEST * (_NARROWEST / _WIDEST) ** (step / max(1, self.steps - 1))
            return top_signs(movable(grad, x_k, threat), max(1, round(width * threat.eps / (threat.high - threat.low))))
        return steepest(grad, threat.norm)

    @staticmethod
    def _record(
        best: Best, target: Target, logits: Tensor, x_k: Tensor, goal: Goal, index: Tensor, rows: Tensor,
        scores: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Offer the points to ``best``; returns which of them fool the defense."""
        if target.rejects and scores is None:
            scores = target.scores(x_k, index)
        fooled = target.fooled(logits, x_k, goal.y, index, scores)
        best.update(x_k, torch.where(fooled, torch.inf, merit(target, goal, logits, x_k, index, scores)), rows)
        return fooled
