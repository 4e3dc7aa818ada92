"""Auto-PGD: projected ascent whose step size follows the loss (Croce & Hein 2020; in l1 Croce & Hein 2021)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from attacks.toolkit.active import Active
from attacks.toolkit.estimators import Estimator, EstimatorLike, as_estimator, estimator_prepares, prepare_estimator
from attacks.toolkit.joint import merit
from attacks.toolkit.losses import Goal, LossLike, get_loss
from attacks.toolkit.projections import per_example, steepest
from attacks.toolkit.selection import Best, classes_to_reach, strength
from bench.contracts.answers import Evaluation
from bench.contracts.attack import attack
from bench.contracts.target import Target
from bench.contracts.threat import Lp


@attack(
    "apgd",
    version=1,
    knowledge="gradient",
    norms=("linf", "l2", "l1"),
    targeted=True,
    paper="Croce & Hein 2020, Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse "
    "Parameter-free Attacks; l1: Croce & Hein 2021, Mind the Box",
    url="https://arxiv.org/abs/2003.01690",
    prepare=prepare_estimator,
    prepares=estimator_prepares,
)
def apgd(
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    steps: Annotated[int, Ge(1)] = 100,
    restarts: Annotated[int, Ge(1)] = 1,
    loss: LossLike = "ce",
    targets: Annotated[int, Ge(0)] = 0,
    rho: Annotated[float, Gt(0), Le(1)] = 0.75,
    alpha: Annotated[float, Gt(0), Le(1)] = 0.75,
    random_start: bool = True,
    estimator: EstimatorLike = "exact",
    rescore: Annotated[int, Ge(1)] = 16,
) -> Tensor:
    """APGD: ascent with momentum that halves its step where the loss stalls (Croce & Hein 2020, algorithm 1).

    With a deterministic defense an example leaves the batch when it is fooled; otherwise the point of highest loss
    is returned. With a randomised defense, and with an estimator that looks at a stand-in for it, the point of
    highest loss and the last point of every run are compared on the defense itself.

    In l1 (Croce & Hein 2021, section 4) the steps are sparse, and the first 60 % of them are taken in wider balls.

    Where the authors' implementation differs: it takes one gradient more, at the last point, which needs only a
    forward pass (in l1, two more at the ends of the wider balls); it keeps every example to the end of a run; on a
    randomised defense it judges a point by its last draw, not by the mean of an estimator's draws.

    Args:
        target: gradient knowledge.
        x: ``(N, …)`` in the box; y: int64 ``(N,)``.
        steps: gradient steps of each run, K.
        restarts: number of runs, each from a new random start.
        loss: ``ce``, ``dlr``, ``margin`` or another (``attacks.toolkit.losses``).
        targets: when above 0, every restart is run once towards each of this many classes, those the defense
            ranks highest after y at x. With ``dlr`` and 9 it is the APGD-T of AutoAttack.
        rho: share of the steps of a window in which the loss has to rise, lest the step size be halved (linf, l2).
        alpha: weight of the gradient step against the previous step's direction (linf, l2).
        random_start: start on the ball's surface (l1: at normal noise projected onto the ball) instead of at x.
        estimator: how to get the gradient (``attacks.toolkit.estimators``).
        rescore: draws on which candidates for a randomised defense are compared.

    Returns:
        x_adv, shaped like x.
    """
    goal = Goal.of(target, get_loss(loss), y)
    ascent = Ascent(as_estimator(estimator), steps, rho, alpha, rescore)
    best = Best(x)
    active = torch.arange(len(x), device=x.device)
    classes, logits = classes_to_reach(target, x, y, targets, rescore)
    if logits is not None and not target.randomized:
        active = active[~target.fooled(logits, x, y)]  # x itself is what is returned for the others
    for restart in range(restarts):
        for towards in classes:
            if not len(active):
                return best.x
            # Random numbers are drawn for the whole shard, so that no example's depend on another's success.
            start = ascent.start(target, x) if random_start or restart > 0 else x
            active = ascent.run(target, best, x[active], start[active], goal.towards(towards).at(active), active)
    return best.x


#: Radii, in units of eps, of the wider balls in which an ascent in l1 begins, and the share of the steps in each
#: ("APGD with eps-reduction"). At equal cost without them, 3 to 8 of 100 adversarially trained digits more are left.
_WIDER, _WIDER_SHARE = (3.0, 2.0), 0.3


@dataclass(frozen=True)
class Ascent:
    """The settings of a run.

    Attributes:
        estimator: how to get the gradient.
        steps, rho, alpha, rescore: as in :func:`apgd`.
    """

    estimator: Estimator
    steps: int
    rho: float
    alpha: float
    rescore: int

    def start(self, target: Target, x: Tensor) -> Tensor:
        """A random point for every example; a run projects it onto the ball."""
        threat = target.ball
        if threat.norm == "l1":
            return x + target.randn(*x.shape, like=x)
        if threat.norm == "l2":
            return x + threat.eps * steepest(target.randn(*x.shape, like=x), "l2")
        u = 2 * target.rand(*x.shape, like=x) - 1
        return x + threat.eps * u / per_example(u.flatten(1).abs().amax(1).clamp_min(1e-12), u)

    def run(self, target: Target, best: Best, x: Tensor, start: Tensor, goal: Goal, index: Tensor) -> Tensor:
        """One run from ``start``; offers its points to ``best`` and returns the examples still standing."""
        threat, left = target.ball, self.steps
        stop_early = self.estimator.true_forward and not target.randomized
        climb: _Climb
        if threat.norm == "l1":
            for factor in _WIDER:
                wider, steps = dataclasses.replace(threat, eps=factor * threat.eps), int(_WIDER_SHARE * self.steps)
                climb = _SparseClimb(x, start, goal, index, wider, steps)
                self.climb(target, climb)
                start, left = climb.best, left - steps
            climb = _SparseClimb(x, start, goal, index, threat, left)
        else:
            climb = DenseClimb(x, start, goal, index, threat, left, self.rho, self.alpha)
        self.climb(target, climb, best if stop_early else None)
        if not stop_early:
            for point in (climb.best, climb.point):
                score = strength(target, point, goal.y, index, self.rescore if target.randomized else 1)
                if not target.randomized:
                    score = torch.where(score > 0.5, torch.inf, score)
                best.update(point, score, index)
        elif len(climb.index):
            logits = target.logits(climb.point, climb.index)  # no gradient of the last point is needed
            if target.rejects:
                scores = target.scores(climb.point, climb.index)
                joint = merit(target, climb.goal, logits, climb.point, climb.index, scores)
                climb.see(Evaluation(joint, climb.grad, logits, scores))
                climb.release(target, best)
                best.update(climb.best, climb.best_loss, climb.index)
            else:
                climb.see(Evaluation(climb.goal(logits), climb.grad, logits))
                climb.release(target, best)
                best.update(climb.best, climb.goal.margin(climb.best_logits), climb.index)
        return index[best.score[index] < torch.inf]

    def climb(self, target: Target, climb: _Climb, best: Best | None = None) -> None:
        """Take all steps; given ``best``, the examples that are fooled leave on the way."""
        for step in range(climb.steps):
            climb.see(self.estimator.evaluate(target, climb.point, climb.goal, climb.index))
            if best is not None:
                climb.release(target, best)
                if not len(climb.index):
                    return
            climb.review(step)
            climb.move(first=step == 0)


class _Climb(Active):
    """The state of one run: row i of every tensor belongs to the example ``index[i]``.

    Args:
        x: the clean points.
        start: where to begin, once projected.
        threat: the ball and the box to stay in.
        steps: gradient steps to be taken.
    """

    def __init__(self, x: Tensor, start: Tensor, goal: Goal, index: Tensor, threat: Lp, steps: int) -> None:
        self.x, self.goal, self.index, self.threat, self.steps = x, goal, index, threat, steps
        self.point = self.previous = self.best = threat.project_(start.clone(), x)
        self.grad = self.best_grad = torch.zeros_like(x)
        self.loss = x.new_full((len(x),), torch.inf)
        self.best_loss = -self.loss
        self.logits = self.best_logits = x.new_empty(0)
        #: The detector's at the present point; None where there is none.
        self.scores: Tensor | None = None
        #: Steps of the present window in which the loss rose.
        self.rises = torch.zeros_like(index)

    def see(self, at: Evaluation) -> None:
        """Take note of loss, gradient and logits at the present point."""
        loss = torch.where(at.loss.isnan(), -torch.inf, at.loss)
        if not len(self.best_logits):
            self.best_logits = at.logits
        better = loss > self.best_loss
        wide = per_example(better, at.grad)
        self.best = torch.where(wide, self.point, self.best)
        self.best_grad = torch.where(wide, at.grad, self.best_grad)
        self.best_logits = torch.where(better[:, None], at.logits, self.best_logits)
        self.best_loss = torch.maximum(loss, self.best_loss)
        self.rises += loss > self.loss
        self.loss, self.grad, self.logits, self.scores = loss, at.grad, at.logits, at.scores

    def release(self, target: Target, best: Best) -> None:
        """Hand the present points that fool the defense to ``best``; their examples leave."""
        fooled = target.fooled(self.logits, self.point, self.goal.y, self.index, self.scores)
        if fooled.any():
            where = self.index[fooled]
            best.x[where], best.score[where] = self.point[fooled], torch.inf
            self.keep(~fooled)

    def back(self, rows: Tensor) -> None:
        """Return to the best point where the mask ``rows`` says so."""
        wide = per_example(rows, self.point)
        self.point = torch.where(wide, self.best, self.point)
        self.grad = torch.where(wide, self.best_grad, self.grad)
        self.rises = torch.zeros_like(self.rises)

    def review(self, step: int) -> None:
        """Before step number ``step``: adapt the step size, and return to the best point, where that is due."""
        raise NotImplementedError

    def move(self, first: bool) -> None:
        """Take a step from the present point."""
        raise NotImplementedError


class DenseClimb(_Climb):
    """linf and l2: steepest ascent with momentum; the step is halved where the loss stalls (algorithm 1)."""

    def __init__(
        self, x: Tensor, start: Tensor, goal: Goal, index: Tensor, threat: Lp, steps: int, rho: float,
        alpha: float,
    ) -> None:  # fmt: skip
        super().__init__(x, start, goal, index, threat, steps)
        self.rho, self.alpha = rho, alpha
        self.step = x.new_full((len(x),), 2 * threat.eps)
        self.low, self.high = (x - threat.eps).clamp_min(threat.low), (x + threat.eps).clamp_max(threat.high)
        self.halved = torch.ones_like(index, dtype=torch.bool)
        self.best_before = self.best_loss
        self.windows = _windows(steps)

    def review(self, step: int) -> None:
        if step not in self.windows:
            return
        halve = self.rises < self.rho * self.windows[step]
        halve |= ~self.halved & (self.best_loss <= self.best_before)
        self.step = torch.where(halve, self.step / 2, self.step)
        self.halved, self.best_before = halve, self.best_loss
        self.back(halve)

    def move(self, first: bool) -> None:
        point = self.point
        z = self.project_(torch.addcmul(point, per_example(self.step, point), steepest(self.grad, self.threat.norm)))
        if not first:
            # x_k + α (z - x_k) + (1 - α) (x_k - x_{k-1}), equation 1 of the paper
            rest = 1 - self.alpha
            z = self.project_(z.mul_(self.alpha).add_(point, alpha=2 * rest).sub_(self.previous, alpha=rest))
        self.previous, self.point = point, z

    def project_(self, point: Tensor) -> Tensor:
        """Onto ball and box; in linf, where that is one clamp, between bounds found once."""
        if self.threat.norm == "linf":
            return torch.clamp(point, self.low, self.high, out=point)
        return self.threat.project_(point, self.x)


def _windows(steps: int) -> dict[int, int]:
    """When the step is reviewed: steps taken until then → steps since the last review.

    0.22 K steps first, then each time 0.03 K fewer, down to 0.06 K (section 4).
    """
    window, end, reviews = max(int(0.22 * steps), 1), 0, {}
    while (end := end + window) < steps:
        reviews[end] = window
        window = max(window - max(int(0.03 * steps), 1), int(0.06 * steps), 1)
    return reviews


class _SparseClimb(_Climb):
    """l1: steps over the values of largest gradient alone, as many as the best point so far suggests.

    Croce & Hein 2021, section 4: after every window the share of values to be changed becomes two thirds of
    those that the best point changes. Where these have become fewer, the step is the full one again, from the best
    point on; elsewhere it falls, down to a tenth.
    """

    def __init__(self, x: Tensor, start: Tensor, goal: Goal, index: Tensor, threat: Lp, steps: int) -> None:
        super().__init__(x, start, goal, index, threat, steps)
        self.window = max(int(0.04 * steps), 1)
        self.size = x[0].numel()
        self.step = x.new_full((len(x),), threat.eps)
        self.support = self.changed()
        self.chosen = torch.where(self.support > 0, self.support / 1.5, 0.2 * self.size)

    def changed(self) -> Tensor:
        """How many values the best point of each example changes, ``(M,)``."""
        return (self.best != self.x).flatten(1).sum(1)

    def review(self, step: int) -> None:
        if step == 0 or step % self.window:
            return
        support, eps = self.changed(), self.threat.eps
        fewer = support < 0.95 * self.support
        self.step = torch.where(fewer, eps, (self.step / 1.5).clamp_min(eps / 10))
        self.support, self.chosen = support, support / 1.5
        self.back(fewer)

    def move(self, first: bool) -> None:
        size = self.grad.flatten(1).abs()
        number = self.chosen.long().clamp(1, self.size)
        least = size.topk(int(number.max()), dim=1).values.gather(1, number[:, None] - 1)
        sign = torch.where(size >= least, self.grad.flatten(1).sign(), 0.0)
        sign *= (self.step / sign.abs().sum(1).clamp_min(1))[:, None]
        self.point = self.threat.project_(self.point + sign.view_as(self.point), self.x)
