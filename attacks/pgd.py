"""Projected gradient descent with any loss and any gradient estimator (Madry et al. 2018)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from attacks.estimators import Estimator, EstimatorLike, as_estimator
from attacks.losses import Goal, LossLike, get_loss
from attacks.projections import per_example, project_, start_in_ball, steepest
from attacks.selection import Best, ranked_classes, strength
from bench.attack import PrepareContext, attack
from bench.target import Target

Schedule = Literal["constant", "linear", "cosine"]


def _decay(schedule: Schedule, step: int, steps: int) -> float:
    if schedule == "constant":
        return 1.0
    if schedule == "linear":
        return 1 - step / steps
    return 0.5 * (1 + math.cos(math.pi * step / steps))


def prepare_estimator(context: PrepareContext, *, estimator: EstimatorLike, **_: object) -> dict[str, Tensor]:
    """Whatever the estimator has to learn before the attack starts (see ``Reparameterized``)."""
    return as_estimator(estimator).prepare(context)


def estimator_prepares(*, estimator: EstimatorLike, **_: object) -> bool:
    """Whether the estimator has anything to learn."""
    return as_estimator(estimator).prepares


@attack(
    "pgd",
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
    step_size: Annotated[float, Gt(0)] = 0.25,
    schedule: Schedule = "cosine",
    restarts: Annotated[int, Ge(1)] = 1,
    random_start: bool = True,
    loss: LossLike = "margin",
    targets: Annotated[int, Ge(0)] = 0,
    momentum: Annotated[float, Ge(0)] = 0.0,
    estimator: EstimatorLike = "exact",
    rescore: Annotated[int, Ge(1)] = 16,
) -> Tensor:
    """PGD: steepest ascent of a loss, projected onto the ball and the box after every step.

    x_{k+1} = Π(x_k + α_k · eps · s(g_k)) with s the sign (linf) or g/‖g‖₂ (l2). With a deterministic defense an
    example leaves the batch when it is fooled; otherwise the point of highest loss is returned. With a randomised
    defense the point of highest loss and the last point of every run are compared on fresh draws.

    Args:
        target: gradient knowledge.
        x: ``(N, C, H, W)`` in the box; y: int64 ``(N,)``.
        steps: gradient steps of each run.
        step_size: first step as a fraction of eps.
        schedule: how the step size falls: ``constant``, ``linear`` or ``cosine`` (both to zero).
        restarts: number of runs, each from a new random start.
        random_start: start uniformly in the ball instead of at x.
        loss: ``ce``, ``margin`` or ``dlr`` (``attacks.losses``).
        targets: when above 0, every restart is run once towards each of this many classes, those the defense
            ranks highest after y (multi-targeted, Gowal et al. 2019).
        momentum: μ of MI-FGSM (Dong et al. 2018): the direction is the sum of L1-normalised gradients, decayed.
        estimator: how to get the gradient (``attacks.estimators``).
        rescore: draws on which candidates for a randomised defense are compared.

    Returns:
        x_adv, shaped like x.
    """
    goal = Goal.of(target, get_loss(loss), y)
    ascent = _Ascent(as_estimator(estimator), steps, step_size, schedule, momentum)
    best = Best(x)
    active = torch.arange(len(x), device=x.device)
    for restart in range(restarts):
        for towards in _classes(target, x, y, targets, rescore):
            # Random numbers are drawn for the whole shard, so that no example's depend on another's success.
            start = start_in_ball(target, x) if random_start or restart > 0 else x
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


def _classes(target: Target, x: Tensor, y: Tensor, targets: int, draws: int) -> list[Tensor | None]:
    """The classes to run towards: none in particular, or the ``targets`` highest-ranked ones after y."""
    if not targets or target.towards is not None:
        return [None]
    logits = target.logits(x, draws=draws if target.randomized else 1)
    return list(ranked_classes(logits, y, targets))


@dataclass(frozen=True)
class _Ascent:
    """One run of projected ascent."""

    estimator: Estimator
    steps: int
    step_size: float
    schedule: Schedule
    momentum: float

    def run(self, target: Target, x: Tensor, start: Tensor, goal: Goal, index: Tensor) -> tuple[Best, Tensor]:
        """The best point on the path of each row, scored by the margin (∞ once fooled), and the last point."""
        stop_early = self.estimator.true_forward and not target.randomized
        best, last = Best(start), start.clone()
        rows = torch.arange(len(x), device=x.device)
        x_k, velocity = start.clone(), torch.zeros_like(x)
        for step in range(self.steps):
            at = self.estimator.evaluate(target, x_k, goal.at(rows), index[rows])
            if stop_early:
                going = ~self._record(best, target, at.logits, x_k, goal, index, rows)
                rows, x_k, velocity = rows[going], x_k[going], velocity[going]
                if not len(rows):
                    return best, last
                at.grad = at.grad[going]
            else:
                best.update(x_k, goal.at(rows).margin(at.logits), rows)
            if self.momentum:
                size = per_example(at.grad.flatten(1).abs().sum(1).clamp_min(1e-30), at.grad)
                velocity = at.grad = self.momentum * velocity + at.grad / size
            alpha = self.step_size * _decay(self.schedule, step, self.steps) * target.threat.eps
            x_k = project_(x_k + alpha * steepest(at.grad, target.threat.norm), x[rows], target.threat)
            last[rows] = x_k
        if stop_early:
            self._record(best, target, target.logits(x_k, index[rows]), x_k, goal, index, rows)
        elif not target.randomized:
            # The path was scored by a stand-in for the defense. Its end is its best point; what the defense makes
            # of that is asked once, so that restarts can be compared.
            best = Best(start)
            everyone = torch.arange(len(x), device=x.device)
            self._record(best, target, target.logits(last, index), last, goal, index, everyone)
        return best, last

    @staticmethod
    def _record(
        best: Best, target: Target, logits: Tensor, x_k: Tensor, goal: Goal, index: Tensor, rows: Tensor
    ) -> Tensor:
        """Offer the points to ``best``; returns which of them fool the defense."""
        goal = goal.at(rows)
        fooled = target.fooled(logits, x_k, goal.y, index[rows])
        best.update(x_k, torch.where(fooled, torch.inf, goal.margin(logits)), rows)
        return fooled
