"""Keeping the best point of each example."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.toolkit.joint import merit
from attacks.toolkit.losses import Goal, margin, repeat
from bench.contracts.target import Target

#: What the mean margin weighs at most beside the share of draws.
TIE = 1e-3


def strength(target: Target, x: Tensor, y: Tensor, index: Tensor, draws: int) -> Tensor:
    """How often ``x`` fools the defense over fresh ``draws``, ties broken by the mean margin; ``(M,)``.

    On a randomised defense the loss seen while optimising is partly luck, so an attack compares its own
    candidates on draws it has not optimised on. (The judge scores the winner on yet other draws.)
    """
    share, mean = tried(target, x, y, index, draws)
    return share + TIE * torch.tanh(mean)


def tried(target: Target, x: Tensor, y: Tensor, index: Tensor, draws: int) -> tuple[Tensor, Tensor]:
    """How often ``x (M, …)`` fools the defense over fresh ``draws``, and how nearly in the mean, ``(M,)`` each.

    The latter is the margin, or behind a detector the joint objective; draws that give no number count as zero.
    """
    rows = repeat(x, draws)
    logits = target.logits(rows, index.repeat(draws))
    goal = Goal.of(target, margin, y).at(index) if target.towards is not None else Goal(margin, y)
    scores = target.scores(rows, index.repeat(draws)) if target.rejects else None
    fooled = target.fooled(logits, rows, y.repeat(draws), index.repeat(draws), scores).to(x.dtype)
    values = merit(target, goal.repeat(draws), logits, rows, index.repeat(draws), scores)
    mean_margin = torch.nan_to_num(values, nan=0.0).view(draws, len(x)).mean(0)
    return fooled.view(draws, len(x)).mean(0), mean_margin


def ranked_classes(logits: Tensor, y: Tensor, count: int) -> Tensor:
    """The ``count`` classes that ``logits (M, K)`` rank highest after ``y (M,)``: int64 ``(min(count, K-1), M)``.

    A run towards each of them in turn is the multi-targeted form of an attack (Gowal et al. 2019, arXiv:1910.09338).
    Logits that are not numbers rank somehow, but never y.
    """
    others = torch.nan_to_num(logits, nan=0.0).scatter(1, y[:, None], -torch.inf)
    return others.argsort(1, descending=True)[:, : min(count, logits.shape[1] - 1)].T


def classes_to_reach(
    target: Target, x: Tensor, y: Tensor, count: int, draws: int
) -> tuple[list[Tensor | None], Tensor | None]:
    """The classes that an optimiser runs towards, int64 ``(N,)`` each, in turn.

    They are the ``count`` classes ranked highest after y at x, at the price of a forward pass (``draws`` of them on a
    randomised defense). With ``count`` 0, and where the target names the class to reach, there is one run towards
    none in particular.

    Returns:
        The classes (None: none in particular), and the logits ``(N, K)`` of x if they were asked for.
    """
    if not count or target.towards is not None:
        return [None], None
    logits = target.logits(x, draws=draws if target.randomized else 1)
    return list(ranked_classes(logits, y, count)), logits


class Best:
    """The best point seen for each example, by a score to be maximised.

    Args:
        x: the points to start from, ``(N, …)``.
    """

    def __init__(self, x: Tensor) -> None:
        self.x = x.clone()
        self.score = torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)

    def update(self, x: Tensor, score: Tensor, index: Tensor) -> None:
        """Offer points ``x (M, …)`` with ``score (M,)`` for the examples ``index`` (each at most once)."""
        better = score > self.score[index]
        where = index[better]
        self.x[where] = x[better]
        self.score[where] = score[better]


#: Draws on which a point that fooled a randomised defense is tried again, and the share it has to fool to be final.
CONFIRM, ENOUGH = 9, 0.88


def confirm(target: Target, best: Best, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
    """Offer points ``x (M, …)`` that fooled to ``best``; returns which of the examples are finished, bool ``(M,)``.

    On a deterministic defense all are. On a randomised one a single answer is luck: the points are tried on
    ``CONFIRM`` fresh draws each.

    Args:
        y: labels ``(M,)`` of the examples ``index (M,)``.
    """
    if not target.randomized:
        best.update(x, torch.full_like(best.score[index], torch.inf), index)
        return torch.ones_like(index, dtype=torch.bool)
    held = strength(target, x, y, index, CONFIRM)
    best.update(x, held, index)
    return held >= ENOUGH
