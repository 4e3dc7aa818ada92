"""What attacks that see only labels share: questions under a cap, a start, and the nearest point of each example."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from attacks.toolkit.projections import length, per_example
from bench.contracts.target import Target

#: Bisections of one search: float32 resolves no more.
MAX_BISECTIONS = 24
#: Questions that confirm a point on a randomised defense, and how many must be answered with yes to stop there.
CONFIRM, ENOUGH = 9, 8


def towards_x(points: Tensor, x: Tensor, radius: Tensor, norm: str) -> Tensor:
    """``points`` moved to within ``radius (M,)`` of x: clipped to it (linf) or shrunk (l2)."""
    delta = points - x
    if norm == "linf":
        limit = per_example(radius, x)
        return x + torch.clamp(delta, -limit, limit)
    size = torch.linalg.vector_norm(delta.flatten(1), dim=1).clamp_min(1e-30)
    return x + per_example((radius / size).clamp_max(1.0), x) * delta


class Oracle:
    """Yes-or-no questions under a hard cap: is this point adversarial for that example?

    Args:
        target: decision knowledge.
        y: labels of all examples, int64 ``(N,)``.
        queries: cap on the passes of one example.
        draws: passes per question, of which the majority counts; used on randomised defenses alone.
    """

    def __init__(self, target: Target, y: Tensor, queries: int, draws: int = 1) -> None:
        self.target, self.y = target, y
        self.draws = draws if target.randomized else 1
        #: Questions each example may still ask, of ``draws`` passes each.
        self.left = torch.full((len(y),), queries // self.draws, device=y.device)
        #: Questions that confirm a point: one is enough where the answer never changes.
        self.confirmations = CONFIRM if target.randomized else 1
        #: Questions, of ``draws`` passes each, that make up that many passes.
        self.again = -(-CONFIRM // self.draws)

    def __call__(self, points: Tensor, rows: Tensor, draws: int = 1) -> Tensor:
        """Bool ``(M,)`` for ``points (M, …)`` of the examples ``rows``; False where the cap does not allow it.

        An example may occur more often than once only if the caller knows that its questions are within the cap.
        """
        allowed = self.left[rows] >= draws
        if allowed.all():
            return self.within(points, rows, draws)
        answer = torch.zeros_like(allowed)
        if allowed.any():
            answer[allowed] = self.within(points[allowed], rows[allowed], draws)
        return answer

    def within(self, points: Tensor, rows: Tensor, draws: int = 1) -> Tensor:
        """The same, for callers who know that all questions are within the cap."""
        self.left.index_add_(0, rows, torch.full_like(rows, -draws))
        return self.target.is_adversarial(points, self.y[rows], rows, draws=draws * self.draws)


class Nearest:
    """The nearest adversarial point seen for each example, and what is returned in the end.

    A point on the boundary of a randomised defense fools half of the time at best. So what lies inside the ball is
    stretched to its surface, away from the boundary, and the stretched point that fools most often is returned.
    """

    def __init__(self, oracle: Oracle, x: Tensor) -> None:
        self.oracle, self.x, self.threat = oracle, x, oracle.target.ball
        self.point, self.distance = x.clone(), x.new_full((len(x),), torch.inf)
        self._kept, self._hits = x.clone(), torch.zeros(len(x), dtype=torch.int64, device=x.device)

    def offer(self, points: Tensor, rows: Tensor, distance: Tensor) -> None:
        """Adversarial ``points (M, …)`` at ``distance (M,)`` from the examples ``rows``."""
        better = distance < self.distance[rows]
        where = rows[better]
        self.point[where], self.distance[where] = points[better], distance[better]

    def inside(self, rows: Tensor) -> Tensor:
        """Bool ``(M,)``: which examples are finished, having a point inside the ball that holds."""
        near = (self.distance[rows] <= self.threat.eps).nonzero().squeeze(1)
        done = torch.zeros_like(rows, dtype=torch.bool)
        if not len(near):
            return done
        some = rows[near]
        x = self.x[some]
        scale = self.threat.eps / self.distance[some].clamp_min(1e-12)
        stretched = self.threat.project_(x + per_example(scale, x) * (self.point[some] - x), x)
        hits = torch.zeros_like(some)
        for _ in range(self.oracle.confirmations):
            hits += self.oracle(stretched, some)
        better = hits > self._hits[some]
        self._kept[some[better]], self._hits[some[better]] = stretched[better], hits[better]
        done[near] = hits >= ENOUGH if self.oracle.target.randomized else True
        return done

    def result(self) -> Tensor:
        """The point to return for every example: the stretched one, or the nearest, moved onto the ball."""
        beyond = self.distance > self.threat.eps  # a point inside stays as it was asked about, to the last bit
        nearest = self.point.clone()
        nearest[beyond] = self.threat.project_(nearest[beyond], self.x[beyond])
        return torch.where(per_example(self._hits > 0, nearest), self._kept, nearest)


def search(nearest: Nearest, points: Tensor, rows: Tensor, bisections: int) -> Tensor:
    """Move adversarial ``points`` of the examples ``rows`` towards x to the boundary, by bisection.

    Returns the nearest points found to be adversarial, shaped like ``points``; they are offered to ``nearest``.
    """
    x, norm = nearest.x[rows], nearest.threat.norm
    far = length(points - x, norm)
    low, high = torch.zeros_like(far), far
    for _ in range(bisections):
        middle = (low + high) / 2
        hit = nearest.oracle(towards_x(points, x, middle, norm), rows)
        high, low = torch.where(hit, middle, high), torch.where(hit, low, middle)
    points = torch.where(per_example(high < far, x), towards_x(points, x, high, norm), points)
    nearest.offer(points, rows, length(points - x, norm))
    return points


def find_start(nearest: Nearest, tries: int) -> tuple[Tensor, Tensor]:
    """Find an adversarial image for every example.

    Uniform noise, on ever coarser grids in turn (fine noise tends to fall into one and the same class), and the
    other images of the shard, the nearest first: those of another class after the noise, or in a targeted attack
    those of the class to reach before it.

    Args:
        nearest: examples that are adversarial as they are get distance 0 there, and take no part.
        tries: noise images tried for one example, and at most as many images of the shard.

    Returns:
        Points ``(N, …)`` and the examples ``(M,)``, in order, for which they are a start.
    """
    x, oracle = nearest.x, nearest.oracle
    target, points = oracle.target, x.clone()
    rows = torch.arange(len(x), device=x.device)
    already = oracle(x, rows, draws=oracle.confirmations)
    nearest.distance[already] = 0.0
    rows, found = rows[~already], [rows[:0]]
    order, useful = _by_distance(x, oracle.y, target.towards)
    images = min(tries, len(x))
    noise_last = target.towards is not None
    for attempt in range(tries + images):
        if not len(rows):
            break
        if (attempt >= images) if noise_last else (attempt < tries):
            candidates, asked = _noise(target, x, attempt)[rows], rows
        else:
            rank = attempt if noise_last else attempt - tries
            asked = rows[useful[rows, rank]]
            candidates = x[order[asked, rank]]
        hit = oracle(candidates, asked)
        points[asked[hit]] = candidates[hit]
        found.append(asked[hit])
        rows = rows[~torch.isin(rows, asked[hit])]
    return points, torch.cat(found).sort().values


def _noise(target: Target, x: Tensor, attempt: int) -> Tensor:
    low, high = target.ball.low, target.ball.high
    if x.ndim == 2:
        return low + (high - low) * target.rand(*x.shape, like=x)
    grid = [max(1, side >> attempt % 4) for side in x.shape[2:]]
    return low + (high - low) * F.interpolate(target.rand(*x.shape[:2], *grid, like=x), x.shape[2:])


def _by_distance(x: Tensor, y: Tensor, towards: Tensor | None) -> tuple[Tensor, Tensor]:
    """For each example the images of the shard, ``(N, N)``: their order, and which of them are worth trying."""
    useful = y[:, None] != y if towards is None else towards[:, None] == y
    distance = torch.cdist(x.flatten(1), x.flatten(1)).masked_fill(~useful, torch.inf)
    far, order = distance.sort(1)
    return order, far.isfinite()
