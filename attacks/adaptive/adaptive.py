"""The attack that adapts itself to a defense: ``adaptive``."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from attacks.adaptive.search import Candidate, budgets, cost, read, search
from attacks.gradient.pgd import Ascent
from attacks.toolkit.composition import Standing
from attacks.toolkit.losses import Goal, get_loss
from bench.contracts.attack import PrepareContext, attack
from bench.contracts.target import Target

#: Of the budget: to the first climbs from anywhere; the rest goes where an example is nearest to falling.
_FIRST = 0.5
#: Rounds of the rest, each from the best points so far, with this share of their values drawn anew.
_ROUNDS, _REDRAWN = 4, 0.3


def _prepare(context: PrepareContext, **_: object) -> dict[str, Tensor]:
    return search(context)


@attack(
    "adaptive",
    version=1,
    knowledge="gradient",
    norms=("linf", "l2"),
    targeted=True,
    paper="this project; successive halving: Jamieson & Talwalkar 2016, Non-stochastic Best Arm Identification and "
    "Hyperparameter Optimization",
    url="https://arxiv.org/abs/1502.07943",
    prepare=_prepare,
)
def adaptive(
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    passes: Annotated[int, Ge(50)] = 1000,
    rescore: Annotated[int, Ge(1)] = 30,
) -> Tensor:
    """Find on validation images what suits the defense; then spend the budget with it, most on the nearest to falling.

    Before it meets any example it tries gradient estimators (exact, identity, each declared approximation and variant,
    the guide, the classifier alone, finite differences), losses (margin, -p_y, cross-entropy, log odds), optimisers
    (PGD, with momentum, APGD) and draws against steps, by successive halving on 40 validation images
    (``attacks.adaptive.search``). What it found, and how the others did, is a note of the result.

    Then, on the examples: (1) a climb with each of the three best combinations from a random start, for half of the
    budget, the best one longest. (2) Four rounds from the best point of each example, three tenths of its values drawn
    anew, with the combinations in turn: for all that stand, then for the half nearest to falling, and so on. Every
    point is compared with the best so far on fresh draws.

    Args:
        target: gradient knowledge.
        x: ``(N, …)`` in the box; y: int64 ``(N,)``.
        passes: forward and backward passes that an example gets on average, comparisons not counted.
        rescore: draws on which points for a randomised defense are compared.

    Returns:
        x_adv, shaped like x.
    """
    candidates, says = read(target.prepared)
    target.counts.notes.add(says)
    standing = Standing(target, x, y, rescore)
    for candidate, share in zip(candidates, budgets(round(_FIRST * passes), len(candidates)), strict=True):
        standing.run(candidate.stage(share, rescore))
    rest = (1 - _FIRST) * passes / _ROUNDS
    for number in range(_ROUNDS):
        candidate = candidates[number % len(candidates)]
        near = _nearest(standing, len(standing.index) >> number)
        if not len(near):
            break
        _again(standing, candidate, near, round(rest * len(standing.index) / len(near)), rescore)
    return standing.best.x


def _nearest(standing: Standing, count: int) -> Tensor:
    """Of the examples that stand, the ``count`` nearest to falling, at least one; of those that always fall, none."""
    index = standing.index
    score = standing.best.score[index]
    index, score = index[score < 1], score[score < 1]
    return index[score.argsort(descending=True)[: max(1, count)]]


def _again(standing: Standing, candidate: Candidate, index: Tensor, passes: int, rescore: int) -> None:
    """Climb on from the best points of the examples ``index``, and offer what is found."""
    target, x = standing.target, standing.x
    fresh = target.threat.sample(x, target.generator)
    chosen = target.rand(*x.shape, like=x) < _REDRAWN
    start = target.threat.project_(torch.where(chosen, fresh, standing.best.x), x)
    steps = max(2, passes // (candidate.samples * cost(candidate.estimator)))
    goal = Goal.of(target, get_loss(candidate.loss), standing.y).at(index)
    ascent = Ascent(candidate.gradient(), steps, 0.5, "cosine", momentum=0.75 if candidate.optimiser != "pgd" else 0.0)
    run, last = ascent.run(target, x[index], start[index], goal, index)
    points = standing.best.x.clone()
    for found in (run.x, last) if target.randomized else (run.x,):
        points[index] = found
        standing.offer(points[standing.index])
