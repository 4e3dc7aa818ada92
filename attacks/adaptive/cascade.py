"""The best ordering of the suite for a defense whose gradients can be followed: ``cascade``."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from attacks.gradient.pgd import Ascent, pgd
from attacks.score.square import square
from attacks.toolkit.composition import Stage, Standing, also_in, in_turn
from attacks.toolkit.estimators import Estimator, EstimatorLike, as_estimator, estimator_prepares, prepare_estimator
from attacks.toolkit.losses import Goal, margin
from attacks.toolkit.selection import ranked_classes
from attacks.toolkit.spaces import spaces
from bench.contracts.attack import attack
from bench.contracts.target import Target

#: Steps of a climb, and its first step in units of eps: from a random point, and from near a local maximum.
_FAR, _NEAR = (20, 1.0), (10, 0.5)
#: Which of the best classes the restarts run towards in turn.
_TURNS = (0, 1, 0, 2)
#: Where Square has proposals to make.
_SQUARE_NORMS = ("linf", "l2")
#: Share of the values that are drawn anew around a local maximum.
_REDRAWN = 0.3
#: Behind a detector, the share of the standing examples that Square has to find for ten times the queries to be worth
#: it. (1 of 50 was worth nothing: the long run found none of the other 49, at the price of three cascades.)
_FEW = 0.05


@attack(
    "cascade",
    version=1,
    randomised_version=2,
    knowledge="gradient",
    norms=("linf", "l2", "l1"),
    targeted=True,
    paper="this project; multi-targeted: Gowal et al. 2019, An Alternative Surrogate Loss for PGD-based Adversarial "
    "Testing; Square: Andriushchenko et al. 2020",
    url="https://arxiv.org/abs/1910.09338",
    prepare=prepare_estimator,
    prepares=estimator_prepares,
)
def cascade(
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    steps: Annotated[int, Ge(1)] = 10,
    targets: Annotated[int, Ge(1)] = 9,
    restarts: Annotated[int, Ge(0)] = 8,
    halvings: Annotated[int, Ge(0)] = 4,
    rounds: Annotated[int, Ge(0)] = 6,
    queries: Annotated[int, Ge(0)] = 200,
    estimator: EstimatorLike = "exact",
    rescore: Annotated[int, Ge(1)] = 16,
) -> Tensor:
    """The worst of many short climbs, spent where an example is nearest to falling; then Square.

    On piecewise linear networks a climb of the margin z_t - z_y has converged after some ten steps, and what a longer
    one still gains is less than what another start gains. So, on the examples still standing: (1) one untargeted
    climb; (2) one climb towards each class; (3) random restarts towards the classes that came nearest; (4) iterated
    local search: from the best point so far, with three tenths of its values drawn anew, for half of the examples,
    those nearest to falling, then for a quarter, …, each time twice as often; (5) Square, which needs no gradient:
    briefly, and with ten times the queries if it finds what the climbs have missed (behind a detector: of more than
    one example in twenty).

    On a randomised defense, or by an estimator that looks at a stand-in, (1), (2) and (5) run as attacks of their
    own, and the point that fools most often on fresh draws is kept. There an example stands until its point has fooled
    on all of ``rescore`` draws and of 64 more.

    Where the target has a detector, all of it is about the joint objective, in the space that the detector dislikes
    least: all points of the ball, or those on whole grey levels. What is still standing then gets (1), and one climb
    towards the nearest class, in the other of the two as well.

    Args:
        target: gradient knowledge.
        x: ``(N, …)`` in the box; y: int64 ``(N,)``.
        steps: of the climbs (1) and (2), the latter from a random point.
        targets: classes of (2), those ranked highest at x.
        restarts: climbs of 20 steps in (3).
        halvings: how often (4) halves the examples; 0 leaves (4) out.
        rounds: climbs of 10 steps for the first half in (4), 2·rounds for the quarter after it, and so on.
        queries: of Square at first; 0 leaves it out, as does l1, for which it has no form.
        estimator: how to get the gradient (``attacks.toolkit.estimators``).
        rescore: draws on which points for a randomised defense are compared.

    Returns:
        x_adv, shaped like x.
    """
    of = as_estimator(estimator)
    if target.ball.norm not in _SQUARE_NORMS:
        queries = 0
    first, *others = spaces(target, x)
    found = first.snap(_in_one_space(first, x, y, steps, targets, restarts, halvings, rounds, queries, of, rescore))
    climb = partial(pgd, steps=_FAR[0], step_size=_FAR[1], schedule="linear", estimator=of, rescore=rescore)
    for other in others:
        found = also_in(target, other, x, y, found, [Stage(climb), Stage(partial(climb, targets=1))], rescore)
    return found


def _in_one_space(
    target: Target, x: Tensor, y: Tensor, steps: int, targets: int, restarts: int, halvings: int, rounds: int,
    queries: int, of: Estimator, rescore: int,
) -> Tensor:  # fmt: skip
    """The whole search, among the points of one space."""
    if target.randomized or not of.true_forward:
        climb = partial(pgd, steps=_FAR[0], step_size=_FAR[1], schedule="linear", estimator=of, rescore=rescore)
        stages = [Stage(climb), Stage(partial(climb, targets=targets, restarts=max(1, restarts)))]
        if queries:
            stages.append(Stage(partial(square, queries=queries, draws=2), "score"))
        return in_turn(target, x, y, stages, rescore)
    standing = Standing(target, x, y, rescore)
    search = _Search(standing, of, targets)
    search.climb(standing.index, None, standing.x, steps, _NEAR[1])
    for place in range(search.classes.shape[1]):
        search.climb(standing.index, place, search.random_start(), steps, _FAR[1])
    for restart in range(restarts):
        search.climb_nearest(standing.index, _TURNS[restart % len(_TURNS)], search.random_start(), *_FAR)
    for halving in range(1, halvings + 1):
        near = search.nearest(len(standing.index) >> halving)
        for _ in range(rounds << (halving - 1)):
            near = near[standing.best.score[near] < torch.inf]
            search.climb_nearest(near, 0, search.redrawn(), *_NEAR)
    if queries:
        left = len(standing.index)
        found = standing.run(Stage(partial(square, queries=queries), "score"))
        if found > (_FEW * left if target.rejects else 0):
            standing.run(Stage(partial(square, queries=10 * queries), "score"))
    return standing.best.x


class _Search:
    """Climbs towards single classes, and how near each has come for every example."""

    def __init__(self, standing: Standing, estimator: Estimator, targets: int) -> None:
        self.standing, self.estimator = standing, estimator
        self.target, self.x, self.y = standing.target, standing.x, standing.y
        #: Classes by their rank at x, ``(N, T)``; a targeted attack has one alone.
        if self.target.towards is None:
            assert standing.logits is not None, "searched so only where it is deterministic"
            self.classes = ranked_classes(standing.logits, self.y, targets).T
        else:
            self.classes = self.target.towards[:, None]
        #: The best margin of any climb towards each, ``(N, T)``.
        self.reached = torch.full(self.classes.shape, -torch.inf, dtype=self.x.dtype, device=self.x.device)
        self.clean = standing.best.score.clone()

    def random_start(self) -> Tensor:
        return self.target.threat.sample(self.x, self.target.generator)

    def redrawn(self) -> Tensor:
        """The best points so far with some of their values drawn anew."""
        fresh = self.random_start()
        chosen = self.target.rand(*self.x.shape, like=self.x) < _REDRAWN
        return self.target.threat.project_(torch.where(chosen, fresh, self.standing.best.x), self.x)

    def nearest(self, count: int) -> Tensor:
        """The ``count`` standing examples nearest to falling.

        Measured by the part of the clean margin that is left, which does not depend on the scale of the logits.
        """
        index = self.standing.index
        left = self.standing.best.score[index] / self.clean[index].clamp_max(-1e-12)
        return index[left.argsort()[: max(1, count)]]

    def climb_nearest(self, index: Tensor, number: int, start: Tensor, steps: int, step_size: float) -> None:
        """Climb towards the class that came ``number``-th nearest for each of the examples ``index``."""
        places = self.reached[index].argsort(1, descending=True)[:, min(number, self.classes.shape[1] - 1)]
        self.climb(index, places, start, steps, step_size)

    def climb(self, index: Tensor, place: Tensor | int | None, start: Tensor, steps: int, step_size: float) -> None:
        """Climb from ``start (N, …)`` for the examples ``index``: towards their classes at ``place``, or any (None)."""
        if not len(index):
            return
        goal = Goal.of(self.target, margin, self.y).at(index)
        if place is not None:
            places = torch.full_like(index, place) if isinstance(place, int) else place
            goal = goal.towards(self.classes[index, places])
        ascent = Ascent(self.estimator, steps, step_size, "linear")
        run, _ = ascent.run(self.target, self.x[index], start[index], goal, index)
        self.standing.keep(run.x, run.score, index)
        if place is not None:
            self.reached[index, places] = torch.maximum(self.reached[index, places], run.score)
