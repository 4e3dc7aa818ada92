"""Climbs from the best points of many other attacks: ``warm-start``."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor

from attacks.adaptive.candidates import cost, estimators_for, written
from attacks.gradient.apgd import Ascent
from attacks.gradient.pgd import pgd
from attacks.toolkit.composition import Stage, Standing
from attacks.toolkit.estimators import as_estimator
from attacks.toolkit.losses import Goal, margin
from bench.contracts.attack import attack
from bench.contracts.errors import InputError, NotApplicable
from bench.contracts.target import Target

#: Share of APGD's windows in which the loss has to rise, and the weight of its step: Croce & Hein 2020.
_RHO, _ALPHA = 0.75, 0.75
#: Draws on which a short climb compares its own two points.
_FEW = 4


@attack(
    "warm-start",
    version=1,
    randomised_version=2,
    knowledge="gradient",
    norms=("linf", "l2"),
    targeted=True,
    paper="this project; the climbs: Croce & Hein 2020, Reliable Evaluation of Adversarial Robustness with an Ensemble "
    "of Diverse Parameter-free Attacks",
    url="https://arxiv.org/abs/2003.01690",
    adapts=True,
)
def warm_start(
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    passes: Annotated[int, Ge(10)] = 40,
    restarts: Annotated[int, Ge(1)] = 5,
    steps: Annotated[int, Ge(1)] = 40,
    samples: Annotated[int, Ge(1)] = 32,
    rescore: Annotated[int, Ge(1)] = 20,
) -> Tensor:
    """Try every gradient estimator briefly; then climb with many draws from the best points that these have found.

    (1) A short climb of the margin (PGD) with every estimator that the defense gives reason to try: exact, identity,
    the classifier alone, finite differences, each declared approximation and variant, the guide alone and beside the
    identity. All that they return is compared on fresh draws. (2) From the best point of each example, then from the
    second best, …, a climb of the margin by APGD along the estimator whose points fooled most often, with the mean
    over ``samples`` draws. The best of all points on fresh draws is returned.

    Args:
        target: gradient knowledge.
        x: ``(N, …)`` in the box; y: int64 ``(N,)``.
        passes: forward and backward passes of each climb in (1).
        restarts: climbs in (2), as many as there are points at most.
        steps: of each climb in (2).
        samples: draws in each gradient in (2), on a randomised defense; fewer where one takes several passes.
        rescore: draws on which points for a randomised defense are compared.

    Returns:
        x_adv, shaped like x.
    """
    standing = Standing(target, x, y, rescore)
    tried, points, scores = _short_climbs(standing, passes)
    best = tried[int(scores.clamp(-1, 1).sum(1).argmax())]
    target.counts.notes.add(f"climbed along {written(best)}")
    order = scores.argsort(0, descending=True)
    estimator = as_estimator({"eot": {"samples": max(1, samples // cost(best)), "of": best}})
    ascent = Ascent(estimator, steps, _RHO, _ALPHA, rescore)
    goal = Goal.of(target, margin, y)
    for place in range(min(restarts, len(points))):
        index = standing.index
        if not len(index):
            break
        start = points[order[place, index], index]
        left = ascent.run(target, standing.best, x[index], start, goal.at(index), index)
        if not target.randomized:
            standing.index = left
    return standing.best.x


def _short_climbs(standing: Standing, passes: int) -> tuple[list[Any], Tensor, Tensor]:
    """The estimators that apply, E of them, the points they lead to, ``(E, N, …)``, and their scores, ``(E, N)``.

    An example that is finished gets no further points: its clean one stands for them.
    """
    target, x, y = standing.target, standing.x, standing.y
    tried, points, scores = ["classifier"], [x], [torch.full_like(standing.best.score, -torch.inf)]
    for estimator in estimators_for(target.defense):
        index = standing.index
        if not len(index):
            break
        mean = as_estimator({"eot": {"samples": 2, "of": estimator}})
        climb = Stage(partial(pgd, steps=max(2, passes // (2 * cost(estimator))), estimator=mean, rescore=_FEW))
        try:
            found = climb.run(target.subset(index, climb.knowledge), x[index], y[index])
        except (NotApplicable, InputError):  # such as an identity where g changes the shape
            continue
        reached, score = x.clone(), torch.full_like(scores[0], -torch.inf)
        reached[index] = found
        score[index] = standing.offer(found)
        tried.append(estimator)
        points.append(reached)
        scores.append(score)
    return tried, torch.stack(points), torch.stack(scores)
