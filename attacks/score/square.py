"""Square: random search over square windows that sees nothing but scores (Andriushchenko et al. 2020)."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from attacks.toolkit.active import Active, take
from attacks.toolkit.joint import look
from attacks.toolkit.losses import Goal, LossLike, get_loss
from attacks.toolkit.selection import CONFIRM, Best, confirm, strength
from bench.contracts.attack import attack
from bench.contracts.target import Target

#: Queries, of a budget of 10,000, after which the share of an image that a window covers is halved.
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_PUBLISHED_BUDGET = 10_000
#: Queries per value of an image after which a run is about as good as it gets, and a new one finds more.
_QUERIES_PER_VALUE = {"linf": 4, "l2": 16}
#: Most steps for which random numbers are drawn at a time.
_BLOCK = 64
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
            fooled, and the last one of each run, are besides tried on 9 draws.)
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
        windows = (_Linf if self.target.ball.norm == "linf" else _L2)(self.target, self.x, rows)
        goal = self.goal.at(rows)
        score = torch.full((len(rows),), -torch.inf, dtype=self.x.dtype, device=rows.device)
        for step, asked in enumerate(range(0, queries - self.draws + 1, self.draws)):
            if self.target.randomized and step % _RESCORE == _RESCORE - 1:
                # Of many candidates the one that was kept had luck: its score is not what it is worth.
                score, _ = self._look(windows.images, rows, goal)
                continue
            if step:
                windows.propose(p_init / 2 ** sum(asked * pace > query for query in _HALVINGS))
            value, fooled = self._look(windows.images, rows, goal, score)
            better = value > score if self.target.randomized else (value > score) | fooled
            score = torch.where(better, value, score)
            windows.settle(better)
            done = fooled & better
            if done.any():
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


class _Windows(Active):
    """The points of a run, of which :meth:`propose` changes a window in place and :meth:`settle` undoes it.

    Nothing outside the window is touched, and random numbers are drawn for many steps at once, so that a step costs
    little beside the model. All examples have the same size of window, at places of their own.
    """

    shared = ("order", "offsets", "patterns")

    def __init__(self, target: Target, x: Tensor, rows: Tensor) -> None:
        self.target, self.rows, self.total, self.given = target, rows, len(x), x.shape[1:]
        #: Whether there is no second dimension, in which a window could have a side.
        self.flat = x.ndim < 4
        x = x.view(len(x), -1 if x.ndim > 2 else 1, 1, x.shape[-1]) if self.flat else x
        self.shape = x.shape[1:]
        self.x = x[rows].flatten(2)
        self.points = self._start(x)[rows].flatten(2)
        self.side = self.places = self.step = 0
        #: Places yet to be visited, in an order that is shifted by a number of its own for each example.
        self.order, self.shift = torch.empty(0, device=x.device), torch.zeros_like(rows)
        #: For the steps of a block, each ``(M, steps, …)``: where the windows are, and what else is drawn.
        self.block: list[Tensor] = []
        #: Where the last proposal wrote, ``(M, C, values)``, what was there before, and what is there now.
        self.undo: list[tuple[Tensor, Tensor, Tensor]] = []

    @property
    def images(self) -> Tensor:
        """The points, shaped like the examples."""
        return self.points.view(-1, *self.given)

    def propose(self, share: float) -> None:
        """Change a window that covers ``share`` of each image."""
        area, (height, width) = share * self.shape[1] * self.shape[2], self.shape[1:]
        side = self._side(area, width) if self.flat else self._side(math.sqrt(area), min(height, width))
        if side != self.side:
            self._resize(side)
        if not self.block or self.step == self.block[0].shape[1]:
            places = self._next_places()
            self.block = [self._corners(places), *self._draw(places.shape[1])]
            self.step = 0
        self._change(*(drawn[:, self.step] for drawn in self.block))
        self.step += 1

    def settle(self, kept: Tensor) -> None:
        """Undo the last proposal except in the rows ``kept``, bool ``(M,)``."""
        for window, before, after in self.undo:
            self.points.scatter_(2, window, torch.where(kept[:, None, None], after, before))
        self.undo = []

    def _start(self, x: Tensor) -> Tensor:
        """Points to start from, for the whole shard ``x``."""
        raise NotImplementedError

    def _side(self, wanted: float, most: int) -> int:
        """The allowed side of a window that is nearest to ``wanted``."""
        raise NotImplementedError

    def _draw(self, steps: int) -> list[Tensor]:
        """What ``_change`` needs besides places, each ``(M, steps, …)``."""
        raise NotImplementedError

    def _change(self, corner: Tensor, *drawn: Tensor) -> None:
        """Write new values into the window at ``corner (M,)`` of every image."""
        raise NotImplementedError

    def _resize(self, side: int) -> None:
        height, width = self.shape[1:]
        down = 1 if self.flat else side
        self.side, self.places = side, (height - down + 1) * (width - side + 1)
        offsets = torch.arange(side, device=self.x.device)
        self.offsets = (offsets[:down, None] * width + offsets).flatten()
        self.order, self.block = self.order[:0], []

    def _next_places(self) -> Tensor:
        """The places of the next steps, ``(M, steps)``: each image visits all of them in random order, then again."""
        if not len(self.order):
            self.order = self.target.rand(self.places, like=self.x).argsort()
            self.shift = self._random_places(1)[:, 0]
        some, self.order = self.order[:_BLOCK], self.order[_BLOCK:]
        return (some + self.shift[:, None]) % self.places

    def _random_places(self, steps: int) -> Tensor:
        drawn = self.target.rand(steps, self.total, like=self.x)
        return (drawn * self.places).long()[:, self.rows].T % self.places

    def _corners(self, places: Tensor) -> Tensor:
        """Index of the first value of the windows at ``places`` within a channel."""
        span = self.shape[2] - self.side + 1
        return places // span * self.shape[2] + places % span

    def _window(self, corner: Tensor) -> Tensor:
        """Indices ``(M, C, values)`` of the values in the windows at ``corner (M,)``."""
        return (corner[:, None, None] + self.offsets).expand(-1, self.shape[0], -1)

    def _heads(self, *shape: int) -> Tensor:
        """Tosses of a coin, bool ``(M, steps, …)`` for ``shape`` without the examples."""
        steps, *rest = shape
        return (self.target.rand(steps, self.total, *rest, like=self.x) < 0.5)[:, self.rows].transpose(0, 1)


class _Linf(_Windows):
    """Corners of the ball: a window takes ±eps, with one sign per channel."""

    def __init__(self, target: Target, x: Tensor, rows: Tensor) -> None:
        super().__init__(target, x, rows)
        threat = target.ball
        self.lowest = (self.x - threat.eps).clamp_min(threat.low)
        self.highest = (self.x + threat.eps).clamp_max(threat.high)

    def _start(self, x: Tensor) -> Tensor:
        """Vertical stripes."""
        threat = self.target.ball
        stripes = self.target.rand(len(x), x.shape[1], 1, x.shape[3], like=x) < 0.5
        return (x + threat.eps * torch.where(stripes, -1.0, 1.0).to(x)).clamp_(threat.low, threat.high)

    def _side(self, wanted: float, most: int) -> int:
        return min(max(1, round(wanted)), most)

    def _draw(self, steps: int) -> list[Tensor]:
        return [self._heads(steps, self.shape[0], 1)]

    def _change(self, corner: Tensor, *drawn: Tensor) -> None:
        (up,) = drawn
        window = self._window(corner)
        before, low, high = (values.gather(2, window) for values in (self.points, self.lowest, self.highest))
        same = (torch.where(up, high, low) == before).all(2, keepdim=True).all(1, keepdim=True)
        after = torch.where(up ^ same, high, low)
        self.points.scatter_(2, window, after)
        self.undo = [(window, before, after)]


class _L2(_Windows):
    """The sphere: the length that a second window gives up goes into a pair of bumps in the first (algorithm 3)."""

    def _start(self, x: Tensor) -> Tensor:
        """A grid of bumps, about five by five, of random signs, as long as the radius."""
        threat, (height, width) = self.target.ball, self.shape[1:]
        side = max(1, (width if self.flat else min(height, width)) // 5)
        bumps = _stretch(side, x) if self.flat else _bumps(side, x)
        down, across = height // bumps.shape[0], width // side
        signs = torch.where(self.target.rand(len(x), self.shape[0], down, across, like=x) < 0.5, -1.0, 1.0).to(x)
        grid = torch.kron(signs, bumps)
        top, left = (height - grid.shape[2]) // 2, (width - grid.shape[3]) // 2
        delta = torch.zeros_like(x)
        delta[:, :, top : top + grid.shape[2], left : left + grid.shape[3]] = grid
        delta *= threat.eps / delta[0].norm()
        return (x + delta).clamp_(threat.low, threat.high)

    def _side(self, wanted: float, most: int) -> int:
        side = min(max(3, round(wanted)) | 1, most)
        return side - 1 + side % 2  # odd

    def _resize(self, side: int) -> None:
        super()._resize(side)
        if self.flat:
            bumps = _stretch(side, self.x)
            turned = bumps.flip(1)
        else:
            bumps = _bumps(side, self.x)
            turned = bumps.T
        self.patterns = torch.stack([bumps, turned, -bumps, -turned]).flatten(1)

    def _draw(self, steps: int) -> list[Tensor]:
        turned, negative = self._heads(steps, 1), self._heads(steps, self.shape[0])
        return [self._corners(self._random_places(steps)), turned + 2 * negative]

    def _change(self, corner: Tensor, *drawn: Tensor) -> None:
        source_corner, pattern = drawn
        window, source = self._window(corner), self._window(source_corner)
        threat, delta = self.target.ball, self.points - self.x
        spare = threat.eps**2 - delta.flatten(1).pow(2).sum(1)
        inside = delta.gather(2, window)
        # What both windows hold, counted once where they overlap.
        given = delta.gather(2, source).pow(2).sum(2)
        own = delta.scatter_(2, source, 0.0).gather(2, window).pow(2).sum(2)
        length = (spare[:, None] / self.shape[0] + given + own).clamp_min(0).sqrt()
        new = self.patterns[pattern] + inside / inside.norm(dim=2, keepdim=True).clamp_min(1e-12)
        new *= (length / new.norm(dim=2).clamp_min(1e-12))[:, :, None]
        origin = self.x.gather(2, source)
        after = (self.x.gather(2, window) + new).clamp_(threat.low, threat.high)
        self.undo = [(at, self.points.gather(2, at), value) for at, value in ((source, origin), (window, after))]
        for at, _, value in self.undo:
            self.points.scatter_(2, at, value)


def _bumps(side: int, like: Tensor) -> Tensor:
    """Two neighbouring bumps of opposite sign, ``(side, side)`` with l2 norm 1 (section 4.2)."""
    top = side // 2
    bumps = torch.cat([_bump(top, side), -_bump(side - top, side)]).to(like)
    return torch.div(bumps, bumps.norm())


def _stretch(side: int, like: Tensor) -> Tensor:
    """The same along one dimension, ``(1, side)``."""
    left = side // 2
    bumps = torch.cat([_bump(1, left), -_bump(1, side - left)], 1).to(like)
    return torch.div(bumps, bumps.norm())


def _bump(height: int, width: int) -> Tensor:
    """Centred squares of side 2k+1 and height 1/(k+1)², stacked: ``(height, width)``, with l2 norm 1."""
    count = max(height, width) // 2 + 1
    heights = torch.arange(1, count + 1, dtype=torch.float64) ** -2
    stacked = heights.flip(0).cumsum(0).flip(0)
    vertical, horizontal = ((torch.arange(size) - size // 2).abs() for size in (height, width))
    bump = stacked[torch.maximum(vertical[:, None], horizontal)]
    return torch.div(bump, bump.norm())
