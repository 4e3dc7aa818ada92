"""Compositions: several attacks in a row, each on the examples that the ones before it left standing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.toolkit.joint import merit
from attacks.toolkit.losses import Goal, margin
from attacks.toolkit.selection import ENOUGH, TIE, Best, strength, tried
from bench.contracts.target import Target

#: A point that fools a randomised defense so many times more, without a miss, is good enough: of 80 draws in all, one
#: that is survived in 4 % of them misses none once in twenty-six times.
SURE = 64


@dataclass(frozen=True)
class Stage:
    """One attack of a composition.

    Attributes:
        run: ``(target, x, y) -> x_adv`` for the examples it is given.
        knowledge: what the target shows it.
    """

    run: Callable[[Target, Tensor, Tensor], Tensor]
    knowledge: str = "gradient"


class Standing:
    """The best point of every example so far, and which examples are not finished.

    On a deterministic defense an example is finished when it is fooled, and clean errors are finished at once. On
    a randomised one, where what fooled once may have been luck, a point is kept where it fools more often on fresh
    draws, and its example is finished once it has fooled on all of these and on all of ``SURE`` more.

    Args:
        draws: passes that compare two points on a randomised defense.
    """

    def __init__(self, target: Target, x: Tensor, y: Tensor, draws: int) -> None:
        self.target, self.x, self.y, self.draws = target, x, y, draws
        self.goal = Goal.of(target, margin, y)
        self.best = Best(x)
        self.index = torch.arange(len(x), device=x.device)
        #: Logits of x, ``(N, K)``; None of a randomised defense.
        self.logits = None if target.randomized else target.logits(x)
        self.offer(x, self.logits)

    def run(self, stage: Stage) -> int:
        """Run a stage on the examples still standing; returns how many of them it finished."""
        before = len(self.index)
        if before:
            part = self.target.subset(self.index, stage.knowledge)
            self.offer(stage.run(part, self.x[self.index], self.y[self.index]))
        return before - len(self.index)

    def offer(self, points: Tensor, logits: Tensor | None = None) -> Tensor:
        """Judge ``points``, one for each example still standing, and keep those that are better.

        Args:
            logits: those that a deterministic defense has given for them already, if it has.

        Returns:
            The score of each: how often it fools on fresh draws, or on a deterministic defense how nearly; ∞ where it
            finishes its example.
        """
        target, index = self.target, self.index
        y = self.y[index]
        if not len(index):
            return points.new_empty(0)
        if target.randomized:
            score = self._by_draws(points, y, index)
        else:
            logits = target.logits(points, index) if logits is None else logits
            scores = target.scores(points, index) if target.rejects else None
            fooled = target.fooled(logits, points, y, index, scores)
            score = merit(target, self.goal.at(index), logits, points, index, scores)
            score = torch.where(fooled, torch.inf, score)
        self.keep(points, score, index)
        return score

    def _by_draws(self, points: Tensor, y: Tensor, index: Tensor) -> Tensor:
        """How often each point fools a randomised defense; ∞ on all of the draws and on all of ``SURE`` more."""
        share, mean = tried(self.target, points, y, index, self.draws)
        always = (share == 1).nonzero().flatten()
        if len(always):
            again, _ = tried(self.target, points[always], y[always], index[always], SURE)
            share[always] = torch.where(again == 1, torch.inf, (self.draws + SURE * again) / (self.draws + SURE))
        return share + TIE * torch.tanh(mean)

    def keep(self, points: Tensor, score: Tensor, index: Tensor) -> None:
        """Offer ``points`` with their ``score`` (∞ once fooled) for the examples ``index``."""
        self.best.update(points, torch.nan_to_num(score, nan=-torch.inf, posinf=torch.inf), index)
        self.index = self.index[self.best.score[self.index] < torch.inf]


def in_turn(target: Target, x: Tensor, y: Tensor, stages: Sequence[Stage], draws: int) -> Tensor:
    """Run the stages in order; returns the best point of every example, shaped like x."""
    standing = Standing(target, x, y, draws)
    for stage in stages:
        standing.run(stage)
    return standing.best.x


def also_in(
    target: Target, other: Target, x: Tensor, y: Tensor, found: Tensor, stages: Sequence[Stage], draws: int
) -> Tensor:
    """``found (N, …)``, where ``stages`` in the space of ``other`` do not make it worse for the defense.

    They run on the examples that still stand (``attacks.toolkit.spaces``).
    """
    repeats, everyone = draws if target.randomized else 1, torch.arange(len(x), device=x.device)
    before = strength(target, found, y, everyone, repeats)
    rows = everyone[before < ENOUGH]
    if not len(rows):
        return found
    part = other.subset(rows)
    points = part.snap(in_turn(part, x[rows], y[rows], stages, draws))
    better = strength(target, points, y[rows], rows, repeats) > before[rows]
    found[rows[better]] = points[better]
    return found
