"""One loss for classifier and detector: the sum of both, or a class for what is rejected (Carlini & Wagner 2017)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from attacks.toolkit.estimators import Estimator, EstimatorLike, as_estimator, estimator_prepares, prepare_estimator
from attacks.toolkit.joint import merit
from attacks.toolkit.losses import Goal, best_other, margin
from attacks.toolkit.projections import per_example, steepest
from attacks.toolkit.selection import Best, strength
from bench.contracts.answers import Evaluation
from bench.contracts.attack import attack
from bench.contracts.errors import NotApplicable
from bench.contracts.target import Target

Objective = Literal["sum", "class"]
#: By what factor λ changes while only one side of it is known.
_STRIDE = 10.0


@attack(
    "combined-pgd",
    version=1,
    knowledge="gradient",
    norms=("linf", "l2"),
    targeted=True,
    paper="Carlini & Wagner 2017, Adversarial Examples Are Not Easily Detected: Bypassing Ten Detection Methods",
    url="https://arxiv.org/abs/1705.07263",
    prepare=prepare_estimator,
    prepares=estimator_prepares,
)
def combined_pgd(
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    objective: Objective = "sum",
    steps: Annotated[int, Ge(1)] = 40,
    step_size: Annotated[float, Gt(0)] = 0.25,
    searches: Annotated[int, Ge(1)] = 10,
    estimator: EstimatorLike = "exact",
    rescore: Annotated[int, Ge(1)] = 16,
) -> Tensor:
    """PGD on one loss of classifier and detector: their sum, weighed by bisection, or a class for what is rejected.

    ``sum`` is f + λ·det: the margin and the slack (threshold minus score), both on the scale they have at x. λ starts
    at 1 for every example. After each run it rises where the classifier was fooled and the detector rejected, and
    falls where the classifier held: tenfold at first, and by bisection of its logarithm once both have been seen.

    ``class`` is the defense as one network of K+1 classes (section 2.3 of the paper): the logit of the last is
    (1 + D)·max z, with z above zero, and D above zero where the detector rejects, so that it is the largest exactly
    there. The margin of y and this class to the best of the others is positive only where both are beaten. Runs after
    the first start at random points of the ball.

    On a deterministic defense an example leaves the batch once it is fooled and accepted; otherwise the point of the
    largest joint objective is returned.

    Args:
        target: gradient knowledge, of a defense with a detector.
        x: ``(N, …)`` in the box; y: int64 ``(N,)``.
        objective: ``sum`` or ``class``.
        steps: of each run; their size falls linearly to zero.
        step_size: of the first step, as a fraction of eps.
        searches: runs: values of λ, or starts.
        estimator: how to get the classifier's gradient (``attacks.toolkit.estimators``).
        rescore: draws on which candidates for a randomised defense are compared.

    Returns:
        x_adv, shaped like x.

    Raises:
        NotApplicable: where there is no detector.
    """
    if target.detection is None:
        raise NotApplicable("there is no detector whose score could be part of a loss")
    run, best, weight = _Run(target, as_estimator(estimator), x, y, objective), Best(x), _Weight.ones(x)
    rows = torch.arange(len(x), device=x.device)
    for search in range(searches):
        # Random numbers are drawn for the whole shard, so that no example's depend on another's success.
        x_k = target.threat.sample(x, target.generator) if search and objective == "class" else x
        x_k, last = x_k[rows], torch.zeros(len(x), dtype=torch.bool, device=x.device)
        for step in range(steps + 1):
            at = run.evaluate(x_k, rows, weight.value[rows])
            assert at.scores is not None
            last[rows] = run.goal.at(rows).margin(at.logits) > 0
            if not target.randomized:
                fooled = target.fooled(at.logits, x_k, y[rows], rows, at.scores)
                value = merit(target, run.goal.at(rows), at.logits, x_k, rows, at.scores)
                best.update(x_k, torch.where(fooled, torch.inf, value), rows)
                rows, x_k, at.grad = rows[~fooled], x_k[~fooled], at.grad[~fooled]
            if not len(rows):
                return best.x
            if step < steps:
                alpha = step_size * (1 - step / steps) * target.ball.eps
                x_k = target.threat.project_(x_k + alpha * steepest(at.grad, target.ball.norm), x[rows])
        if target.randomized:
            best.update(x_k, strength(target, x_k, y[rows], rows, rescore), rows)
        weight.update(last)
    return best.x


@dataclass
class _Weight:
    """λ of every example with the bounds of its bisection, ``(N,)`` each."""

    value: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def ones(cls, x: Tensor) -> _Weight:
        one = torch.ones(len(x), dtype=x.dtype, device=x.device)
        return cls(one, torch.zeros_like(one), torch.full_like(one, torch.inf))

    def update(self, fooled: Tensor) -> None:
        """After a run whose last points fooled the classifier or did not, bool ``(N,)``, and were not accepted."""
        self.low = torch.where(fooled, self.value, self.low)
        self.high = torch.where(fooled, self.high, self.value)
        open_ended = torch.where(fooled, self.value * _STRIDE, self.value / _STRIDE)
        both = (self.low > 0) & (self.high < torch.inf)
        self.value = torch.where(both, (self.low * self.high).sqrt(), open_ended)


class _Run:
    """The loss and its gradient."""

    def __init__(self, target: Target, estimator: Estimator, x: Tensor, y: Tensor, objective: Objective) -> None:
        self.target, self.estimator, self.objective = target, estimator, objective
        self.classifier = target.without_detector()
        self.goal = Goal.of(target, margin, y)
        assert target.detection is not None
        self.detection = target.detection
        if target.detection.scales is None:
            target.detection.halves(self.goal.margin(target.logits(x)), target.scores(x))

    def evaluate(self, x: Tensor, index: Tensor, weight: Tensor) -> Evaluation:
        """Loss, its gradient, the classifier's logits and the detector's scores at rows ``x`` of ``index``."""
        detection = self.detection
        assert detection.scales is not None
        scores, grads = self.target.score_gradient(x, index)
        excess = ((scores - detection.threshold) / detection.scales[1]).to(x)
        goal = self.goal.at(index)
        if self.objective == "sum":
            at = self.estimator.evaluate(self.classifier, x, goal, index)
            of_slack = -per_example(weight * detection.scales[0] / detection.scales[1], x) * grads
            return Evaluation(at.loss - weight * excess, at.grad + of_slack, at.logits, scores)
        loss = _WithClass(goal.loss, goal.y, None, goal.reach, excess=excess, unit=detection.scales[0])
        at = self.estimator.evaluate(self.classifier, x, loss, index)
        of_score = per_example(loss.slope(at.logits) / detection.scales[1], x)
        return Evaluation(at.loss, at.grad + of_score * grads, at.logits, scores)


@dataclass(frozen=True)
class _WithClass(Goal):
    """The margin of a network with a class for what is rejected.

    Attributes:
        excess: D of each row, ``(M,)``: above zero where the detector rejects.
        unit: how far above zero the logits' smallest is moved.
    """

    excess: Tensor = field(kw_only=True)
    unit: float = field(kw_only=True)

    def __call__(self, logits: Tensor) -> Tensor:
        z, rejected = self._logits(logits)
        own, other = z.gather(1, self.y[:, None]).squeeze(1), best_other(z, self.y)
        return own - torch.maximum(other, rejected) if self.reach else other - torch.maximum(own, rejected)

    def slope(self, logits: Tensor) -> Tensor:
        """The derivative of the loss in D, ``(M,)``."""
        z, rejected = self._logits(logits)
        rival = best_other(z, self.y) if self.reach else z.gather(1, self.y[:, None]).squeeze(1)
        return torch.where(rejected > rival, -z.amax(1), 0.0)

    def at(self, rows: slice | Tensor) -> _WithClass:
        """The goal of some of the rows (a slice, a mask or indices)."""
        return replace(self, y=self.y[rows], excess=self.excess[rows])

    def repeat(self, n: int) -> _WithClass:
        """The goal of the whole batch stacked ``n`` times."""
        return replace(self, y=self.y.repeat(n), excess=self.excess.repeat(n))

    def _logits(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Logits above zero, ``(M, K)``, and that of the last class, ``(M,)``."""
        z = logits - logits.detach().amin(1, keepdim=True) + self.unit
        return z, (1 + self.excess) * z.amax(1)
