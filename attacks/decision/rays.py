"""RayS: a search for the sign vector along which the boundary is nearest (Chen & Gu 2020)."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from attacks.toolkit.active import Active
from attacks.toolkit.decision_walk import Nearest, Oracle, find_start
from attacks.toolkit.projections import length
from bench.contracts.attack import attack
from bench.contracts.target import Target


@attack(
    "rays",
    version=1,
    knowledge="decision",
    norms=("linf",),
    paper="Chen & Gu 2020, RayS: A Ray Searching Method for Hard-label Adversarial Attack",
    url="https://arxiv.org/abs/2006.12792",
    minimum_norm=True,
)
def rays(
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    queries: Annotated[int, Ge(1)] = 5000,
    tolerance: Annotated[float, Gt(0), Lt(1)] = 0.002,
    init_tries: Annotated[int, Ge(1)] = 100,
    draws: Annotated[int, Ge(1)] = 1,
    stop_inside: bool = True,
) -> Tensor:
    """RayS: flip blocks of signs of a direction wherever that brings the boundary nearer (Chen & Gu 2020).

    The values of an image are cut into 2, 4, 8 … blocks down to single values. Flipping a block is first checked with
    one query, a little nearer than the boundary is now; only if that fools, the new distance is searched for.

    Deviations: the search goes down from the distance of that check in growing steps and then bisects, which takes
    fewer queries than bisection from zero as most flips gain little. After the single values it begins again with
    two blocks, now of values in random order, as otherwise it would try the same flips again. The first direction
    are the signs of an adversarial image (noise, or another image of the shard) instead of ones, or that image's own
    direction where its signs are not adversarial at any distance.

    Args:
        target: decision knowledge.
        x: ``(N, …)`` in the box; y: int64 ``(N,)``.
        queries: hard cap on the label queries of one example, every draw counted.
        tolerance: of the distance, relative to it; a flip has to gain as much.
        init_tries: noise images tried as a start, and at most as many images of other classes in the shard.
        draws: answers per query, of which the majority counts, on a randomised defense (1 on others), where a
            direction is kept only if its point holds in most of nine further passes.
        stop_inside: an example is finished once its point is inside the ball; False spends all queries.

    Returns:
        x_adv, shaped like x; x itself where no start was found.
    """
    oracle = Oracle(target, y, queries, draws)
    nearest = Nearest(oracle, x)
    start, rows = find_start(nearest, init_tries)
    search = _Search(nearest, rows, start[rows], tolerance)
    stopped = nearest.inside(rows) if stop_inside else torch.zeros_like(rows, dtype=torch.bool)
    while True:
        stopped = stopped | (oracle.left[search.rows] == 0)
        if stopped.any():
            search.keep(~stopped)
        if not len(search.rows):
            return nearest.result()
        improved = search.ask()
        stopped = torch.zeros_like(search.rows, dtype=torch.bool)
        if stop_inside and improved.any():
            stopped[improved] = nearest.inside(search.rows[improved])


class _Search(Active):
    """The searching examples, ``rows``: a direction each, a candidate for a better one, and its known distances.

    Images are flattened. A direction ``(M, d)`` has values in [-1, 1]; the boundary along the candidate lies between
    ``low`` (NaN while unknown) and ``high``.
    """

    shared = ("ranks",)

    def __init__(self, nearest: Nearest, rows: Tensor, start: Tensor, tolerance: float) -> None:
        self.nearest, self.oracle, self.tolerance = nearest, nearest.oracle, tolerance
        self.rows, self.x = rows, nearest.x[rows].flatten(1)
        delta = start.flatten(1) - self.x
        size = length(delta, "linf")
        nearest.offer(start, rows, size)
        signs = torch.where(delta < 0, -1.0, 1.0).to(delta)
        box = nearest.threat.high - nearest.threat.low
        corner = self.oracle(self._points(signs, torch.full_like(size, box)), rows)
        self.direction = torch.where(corner[:, None], signs, delta / size.clamp_min(1e-30)[:, None])
        self.distance = torch.where(corner, box, size)
        self.candidate = self.direction.clone()
        self.high, self.low, self.gap = self.distance.clone(), torch.zeros_like(size), torch.zeros_like(size)
        #: The block to be flipped next: number ``block`` of ``blocks``.
        self.block, self.blocks = torch.zeros_like(rows), torch.full_like(rows, 2)
        #: Times that the example went through all sizes of blocks, and the order of the values in each.
        self.passes = torch.zeros_like(rows)
        dim = self.x.shape[1]
        random = self.oracle.target.rand(int(self.oracle.left.max()) // (2 * dim) + 1, dim, like=self.x)
        self.ranks = torch.cat([torch.arange(dim, device=rows.device)[None], random.argsort(1)])

    def ask(self) -> Tensor:
        """One question for every example; bool ``(M,)``: which of them came nearer."""
        middle = torch.where(self.low.isnan(), (self.high - self.gap).clamp_min(0), (self.low + self.high) / 2)
        hit = self.oracle.within(self._points(self.candidate, middle), self.rows)
        self.high = torch.where(hit, middle, self.high)
        self.low = torch.where(hit, self.low, middle)
        self.gap *= 2
        close = self.high - self.low <= 1.01 * self.tolerance * self.high  # False while low is unknown
        improved = close & (self.high < self.distance)
        if improved.any():
            self._keep(improved)
        if close.any():
            self._next(close.nonzero().squeeze(1))
        return improved

    def _keep(self, improved: Tensor) -> None:
        """Make the candidates of some examples their directions, on a randomised defense if they hold."""
        points = self._points(self.candidate, self.high)[improved]
        rows = self.rows[improved]
        if self.oracle.target.randomized:
            holds = self.oracle(points, rows, draws=self.oracle.again)
            improved[improved.clone()] = holds
            points, rows = points[holds], rows[holds]
        self.direction[improved], self.distance[improved] = self.candidate[improved], self.high[improved]
        self.nearest.offer(points, rows, length(points - self.nearest.x[rows], "linf"))

    def _next(self, some: Tensor) -> None:
        """Give examples (positions ``(k,)``) their next block of signs to flip."""
        direction, dim = self.direction[some], self.x.shape[1]
        blocks, block = self.blocks[some], self.block[some]
        size = (dim + blocks - 1) // blocks
        rank = self.ranks[self.passes[some] % len(self.ranks)]
        flipped = (rank >= (block * size)[:, None]) & (rank < ((block + 1) * size)[:, None])
        self.candidate[some] = torch.where(flipped, -direction, direction)
        self.high[some] = self.distance[some]
        self.low[some] = torch.nan
        self.gap[some] = self.tolerance * self.distance[some]
        last = (block + 1) * size >= dim
        again = last & (size == 1)
        self.block[some] = torch.where(last, 0, block + 1)
        self.blocks[some] = torch.where(again, 2, torch.where(last, 2 * blocks, blocks))
        self.passes[some] += again

    def _points(self, direction: Tensor, radius: Tensor) -> Tensor:
        """Images at ``radius (M,)`` along ``direction (M, d)``, clipped to the box."""
        threat = self.nearest.threat
        points = torch.addcmul(self.x, direction, radius[:, None]).clamp_(threat.low, threat.high)
        return points.view(-1, *self.nearest.x.shape[1:])
