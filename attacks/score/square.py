"""Square: random search over square windows that sees nothing but scores (Andriushchenko et al. 2020)."""

from __future__ import annotations

from bisect import bisect_left
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from attacks.toolkit.active import take
from attacks.toolkit.joint import look
from attacks.toolkit.losses import Goal, LossLike, get_loss
from attacks.toolkit.selection import CONFIRM, Best, confirm, strength
from attacks.toolkit.windows import L2Windows, LinfWindows
from bench.contracts.attack import attack
from bench.contracts.target import Target

#: Queries, of a budget of 10,000, after which the share of an image that a window covers is halved.
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_PUBLISHED_BUDGET = 10_000
#: Queries per value of an image after which a run is about as good as it gets, and a new one finds more.
_QUERIES_PER_VALUE = {"linf": 4, "l2": 16}
#: On a randomised defense, one step in so many scores the point to beat afresh.
_RESCORE = 5


@attack(
    "square",
    version=1,
    knowledge="score",
    norms=("linf", "l2"),
    targeted=True,
    paper="Andriushchenko et al. 2020, Square Attack: a query-efficient black-box adversarial attack via random search",
    url="https://arxiv.org/abs/1912.00049",
)
def square(
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    queries: Annotated[int, Ge(1)] = 5000,
    p_init: Annotated[float, Gt(0), Le(1)] = 0.8,
    rescale: bool = True,
    restarts: Annotated[int, Ge(0)] = 0,
    loss: LossLike = "margin",
    draws: Annotated[int, Ge(1)] = 1,
) -> Tensor:
    """Square attack: a window of each image is changed at a time, and kept where the loss rises.

    The published proposals, with three changes. A window visits all its positions in random order before it returns
    to one. A proposal in linf that would change nothing gets the opposite signs. Where the budget is large for the
    image, it is shared by several runs.

    A waveform, or a row of values, has windows of a length instead of a side: stretches of neighbouring values.

    Args:
        target: score knowledge.
        x: ``(N, …)`` in the box; y: int64 ``(N,)``.
        queries: forward passes per example over all runs, every draw counted. (On a randomised defense a point that
            fooled, and the last one of each run, are besides tried on 9 draws. Behind a detector the score of a point
            is a further pass, where the classifier's half does not settle already that the point is no better.)
        p_init: share of an image that the first windows cover.
        rescale: stretch the published schedule of that share, made for 10,000 queries, over each run.
        restarts: runs that share the queries, each from a new random start; 0: one for every 4 (linf) or 16 (l2)
            queries per value of an image, at least one. Measured on 8×8 images at 1000 queries, four runs in linf
            leave two to three points less than one.
        loss: what is to rise (``attacks.toolkit.losses``).
        draws: forward passes per candidate, their logits averaged, on a randomised defense (1 on others).

    Returns:
        x_adv, shaped like x: a point that fooled the defense, or else the one of highest loss.
    """
    number = restarts or max(1, queries // (_QUERIES_PER_VALUE[target.ball.norm] * x[0].numel()))
    search = _Search(target, x, y, Goal.of(target, get_loss(loss), y), draws if target.randomized else 1)
    active = torch.arange(len(x), device=x.device)
    for run in range(number):
        share = queries * (run + 1) // number - queries * run // number
        active = search.run(active, share, p_init, _PUBLISHED_BUDGET / share if rescale and share else 1.0)
        if not len(active):
            break
    return search.best.x


class _Search:
    """Runs of random search that share the best point of each example."""

    def __init__(self, target: Target, x: Tensor, y: Tensor, goal: Goal, draws: int) -> None:
        self.target, self.x, self.y, self.goal, self.draws = target, x, y, goal, draws
        self.best = Best(x)

    def run(self, rows: Tensor, queries: int, p_init: float, pace: float) -> Tensor:
        """Search once for the examples ``rows``; returns those that are not finished.

        Args:
            rows: int64 ``(M,)``.
            queries: forward passes each of them may take.
            p_init: share of an image that the first windows cover.
            pace: queries of the published schedule per query.
        """
        windows = (LinfWindows if self.target.ball.norm == "linf" else L2Windows)(self.target, self.x, rows)
        goal = self.goal.at(rows)
        score = torch.full((len(rows),), -torch.inf, dtype=self.x.dtype, device=rows.device)
        for step, asked in enumerate(range(0, queries - self.draws + 1, self.draws)):
            if self.target.randomized and step % _RESCORE == _RESCORE - 1:
                # Of many candidates the one that was kept had luck: its score is not what it is worth.
                score, _ = self._look(windows.images, rows, goal)
                continue
            if step:
                windows.propose(p_init / 2 ** bisect_left(_HALVINGS, asked * pace))
            value, fooled = self._look(windows.images, rows, goal, score)
            better = value > score
            some = bool(fooled.any())
            if some and not self.target.randomized:
                better |= fooled
            score = torch.where(better, value, score)
            windows.settle(better)
            if some and (done := fooled & better).any():
                found = rows[done]
                final = confirm(self.target, self.best, windows.images[done], self.y[found], found)
                going = ~done.masked_scatter(done, final)
                windows.keep(going)
                rows, score, goal = take(going, rows, score, goal)
                if not len(rows):
                    return rows
        if self.target.randomized:
            score = strength(self.target, windows.images, self.y[rows], rows, CONFIRM)
        self.best.update(windows.images, score, rows)
        return rows

    def _look(
        self, images: Tensor, rows: Tensor, goal: Goal, score: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Loss and success at ``images`` of the examples ``rows``, of which only those beyond ``score`` matter."""
        logits = self.target.logits(images, rows, draws=self.draws)
        return look(self.target, goal, logits, images, rows, score)
