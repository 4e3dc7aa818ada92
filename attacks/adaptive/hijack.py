"""Choosing for a transform what it goes by: ``hijack``."""

from __future__ import annotations

import math
from functools import partial
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from attacks.toolkit.composition import Standing
from attacks.toolkit.inside import Hijack, guide_of
from attacks.toolkit.losses import Goal, margin
from attacks.toolkit.projections import steepest
from attacks.toolkit.selection import Best
from bench.contracts.attack import attack
from bench.contracts.target import Target


@attack(
    "hijack",
    version=1,
    randomised_version=2,
    knowledge="gradient",
    norms=("linf", "l2"),
    targeted=True,
    paper="this project; the defense attacked: Xiao & Zheng 2020, One Man's Trash Is Another Man's Treasure",
    url="https://arxiv.org/abs/1911.11219",
    adapts=True,
)
def hijack(
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    steps: Annotated[int, Ge(1)] = 30,
    classes: Annotated[int, Ge(1)] = 9,
    samples: Annotated[int, Ge(1)] = 8,
    rescore: Annotated[int, Ge(1)] = 16,
) -> Tensor:
    """Make the network that a transform goes by choose the class that is worst for the classifier behind it.

    For a defense that declares a guide (``Defense.guide``), such as an inner attack towards the class that another
    network holds least likely. (1) At x, f(g(x)) is evaluated with each class forced upon g, and classes are ranked by
    how far that fools f. (2) For each of the best, a climb (PGD, cosine steps from eps, the identity as the backward
    pass of g) makes the guide choose that class by itself, and where it does, raises the margin of f behind the forced
    g. (3) The end and the best point of each climb are compared on the defense as it is.

    Args:
        target: gradient knowledge.
        x: ``(N, …)`` in the box; y: int64 ``(N,)``.
        steps: of each climb.
        classes: climbs for each example, to the classes ranked highest in (1).
        samples: draws of g in each gradient, and in (1), of a randomised defense.
        rescore: draws on which points for a randomised defense are compared.

    Returns:
        x_adv, shaped like x.

    Raises:
        NotApplicable: where the defense declares no guide.
    """
    guide_of(target.defense)
    standing = Standing(target, x, y, rescore)
    ranks = _ranked(target, x, y, samples)
    for place in range(min(classes, target.num_classes)):
        start = target.threat.sample(x, target.generator)
        last, best = standing.best.x.clone(), standing.best.x.clone()
        for label in range(target.num_classes):
            index = standing.index[ranks[place, standing.index] == label]
            if not len(index):
                continue
            goal = Goal.of(target, margin, y).at(index)
            forced = Hijack(label, samples)
            best[index], last[index] = _climb(target, forced, x[index], start[index], goal, index, steps)
        standing.offer(best[standing.index])
        standing.offer(last[standing.index])
    return standing.best.x


def _climb(
    target: Target, along: Hijack, x: Tensor, start: Tensor, goal: Goal, index: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """The best point of a run, by the forced g and whether the guide makes that choice, and its end."""
    threat = target.ball
    best, rows, point = Best(start), torch.arange(len(x), device=x.device), start
    for step in range(steps):
        at = along.evaluate(target, point, goal, index)
        best.update(point, at.loss, rows)
        size = threat.eps * 0.5 * (1 + math.cos(math.pi * step / steps))
        point = threat.project_(point + size * steepest(at.grad, threat.norm), x)
    return best.x, point


@torch.no_grad()
def _ranked(target: Target, x: Tensor, y: Tensor, samples: int) -> Tensor:
    """The classes in the order in which forcing them fools f at x, ``(K, N)``."""
    index = torch.arange(len(x), device=x.device)
    goal = Goal.of(target, margin, y)
    reached = []
    for label in range(target.num_classes):
        forced = Hijack(label, samples)
        through = partial(forced.logits, target)
        at = target.evaluate(x, through, goal, index, cost=samples if target.randomized else 1)
        reached.append(at.loss)
    return torch.stack(reached).argsort(0, descending=True)
