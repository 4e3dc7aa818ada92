"""A3: starts that learn from what fooled, and steps for the examples nearest to falling (Liu et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, cast

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from attacks.gradient.pgd import Ascent
from attacks.toolkit.estimators import EstimatorLike, as_estimator, estimator_prepares, prepare_estimator
from attacks.toolkit.losses import Goal, LossLike, get_loss
from attacks.toolkit.projections import steepest
from attacks.toolkit.selection import Best, ranked_classes, strength
from bench.contracts.attack import attack
from bench.contracts.target import Target

#: Weights of the logits once restarts have taught a direction, in tenths of the class count: of y from here to there
#: (turned round where success lay that way), and of one other class.
_OWN, _OTHER = (-0.5, 0.1), 0.8


@attack(
    "a3",
    version=1,
    knowledge="gradient",
    norms=("linf", "l2"),
    targeted=True,
    paper="Liu et al. 2022, Practical Evaluation of Adversarial Robustness via Adaptive Auto Attack",
    url="https://arxiv.org/abs/2203.05154",
    prepare=prepare_estimator,
    prepares=estimator_prepares,
)
def a3(
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    restarts: Annotated[int, Ge(1)] = 13,
    first_steps: Annotated[int, Ge(1)] = 8,
    last_steps: Annotated[int, Ge(1)] = 45,
    initial_steps: Annotated[int, Ge(0)] = 7,
    share: Annotated[float, Gt(0), Le(1)] = 0.2,
    loss: LossLike = "margin",
    estimator: EstimatorLike = "exact",
    rescore: Annotated[int, Ge(1)] = 16,
) -> Tensor:
    """A3: adaptive direction initialisation, and online discarding of hard examples (Liu et al. 2022).

    A restart begins at random in the ball and takes ``initial_steps`` steps of eps along a random combination Σ w_j z_j
    of the logits; from there the loss is climbed, with steps that fall from eps along a cosine. w is uniform in [-1, 1]
    at first. Where earlier restarts have fooled, w_y keeps the sign that it mostly had there, and one other class, from
    restart to restart the next of those ranked highest at x, has the weight ±0.8 with the sign that the class reached
    mostly had (both times a tenth of the class count). From restart to restart fewer of the examples still standing
    are attacked, down to ``share``, those of largest loss so far, and with more steps.

    Where the authors' code differs: signs are those of all classes reached together, where it has cases for single data
    sets and another last restart; steps and shares change evenly from first to last restart; the cosine ends at zero.

    Args:
        target: gradient knowledge.
        x: ``(N, …)`` in the box; y: int64 ``(N,)``.
        restarts: number of runs.
        first_steps: steps of the first run along the loss.
        last_steps: of the last.
        initial_steps: steps along the random combination of logits.
        share: of the standing examples, how many the last restart attacks, at least one.
        loss: what to climb (``attacks.toolkit.losses``).
        estimator: how to get the gradient (``attacks.toolkit.estimators``).
        rescore: draws on which candidates for a randomised defense are compared.

    Returns:
        x_adv, shaped like x: a point that fools, else that of the highest loss.
    """
    source, goal, classes = as_estimator(estimator), Goal.of(target, get_loss(loss), y), target.num_classes
    best, standing = Best(x), torch.arange(len(x), device=x.device)
    learnt = _Learnt(target, x, y)
    for restart in range(restarts):
        done = restart / max(1, restarts - 1)
        # Random numbers are drawn for the whole shard, so that no example's depend on another's success.
        start, weights = target.threat.sample(x, target.generator), learnt.weights(target, restart, classes, x)
        count = max(1, round((1 - done * (1 - share)) * len(standing)))
        rows = standing[best.score[standing].argsort(descending=True, stable=True)[:count]].sort().values
        x_k = start[rows]
        for _ in range(initial_steps):
            along = cast("Goal", _Along(goal.at(rows), weights[rows]))
            grad = source.evaluate(target, x_k, along, rows).grad
            x_k = target.threat.project_(x_k + target.ball.eps * steepest(grad, target.ball.norm), x[rows])
        steps = round(first_steps + done * (last_steps - first_steps))
        ascent = Ascent(source, steps, 1.0, "cosine")
        run, last = ascent.run(target, x[rows], x_k, goal.at(rows), rows)
        if target.randomized:
            for candidate in (run.x, last):
                best.update(candidate, strength(target, candidate, y[rows], rows, rescore), rows)
            continue
        best.update(run.x, run.score, rows)
        fallen = rows[run.score == torch.inf]
        learnt.see(target, run.x[run.score == torch.inf], fallen, weights[fallen])
        standing = standing[best.score[standing] < torch.inf]
        if not len(standing):
            break
    return best.x


@dataclass(frozen=True)
class _Along:
    """Σ w_j z_j, of each row its own ``weights (M, K)``; labels and margin are those of the attack's goal."""

    goal: Goal
    weights: Tensor

    @property
    def y(self) -> Tensor:
        return self.goal.y

    def __call__(self, logits: Tensor) -> Tensor:
        return (self.weights * logits).sum(1)

    def margin(self, logits: Tensor) -> Tensor:
        return self.goal.margin(logits)

    def at(self, rows: slice | Tensor) -> _Along:
        return _Along(self.goal.at(rows), self.weights[rows])

    def repeat(self, n: int) -> _Along:
        return _Along(self.goal.repeat(n), self.weights.repeat(n, 1))


class _Learnt:
    """The combinations of logits that starts were made of where examples fell."""

    def __init__(self, target: Target, x: Tensor, y: Tensor) -> None:
        self.y, self.own, self.reached = y, 0.0, 0.0
        #: The classes after y at x, the likeliest first, ``(K-1, N)``.
        self.ranked = ranked_classes(target.logits(x), y, target.num_classes - 1)

    def see(self, target: Target, points: Tensor, rows: Tensor, weights: Tensor) -> None:
        """Sum up the ``weights (M, K)`` of y and of the class reached, where ``points (M, …)`` of ``rows`` fell."""
        if len(rows):
            reached = target.logits(points, rows).nan_to_num().scatter(1, self.y[rows, None], -torch.inf).argmax(1)
            self.own += float(weights.gather(1, self.y[rows, None]).sum())
            self.reached += float(weights.gather(1, reached[:, None]).sum())

    def weights(self, target: Target, restart: int, classes: int, like: Tensor) -> Tensor:
        """Those of the next start of every example, ``(N, K)``."""
        w = 2 * target.rand(len(self.y), classes, like=like) - 1
        own = _OWN[0] + (_OWN[1] - _OWN[0]) * target.rand(len(self.y), 1, like=like)
        if self.own == 0 and self.reached == 0:
            return w
        scale = classes / 10
        w.scatter_(1, self.y[:, None], scale * (-own if self.own > 0 else own))
        other = self.ranked[restart % len(self.ranked)]
        return w.scatter_(1, other[:, None], scale * (_OTHER if self.reached >= 0 else -_OTHER))
