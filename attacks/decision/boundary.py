"""Boundary attack: a random walk along the decision boundary (Brendel, Rauber & Bethge 2018)."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from attacks.toolkit.active import Active
from attacks.toolkit.decision_walk import Nearest, Oracle, find_start, search
from attacks.toolkit.projections import length
from bench.contracts.attack import attack
from bench.contracts.target import Target

#: Bisections from the start to the boundary.
_BISECTIONS = 10
#: Shares of adversarial proposals at which a step size stays as it is: sideways alone, and with the step to x.
_SIDEWAYS, _BOTH = 0.2, 0.1
#: How much one answer changes the logarithm of a step size: sideways, and towards x.
_SIDEWAYS_RATE, _SOURCE_RATE = 0.5, 0.1
#: Every so many steps the sideways move is asked about alone.
_PERIOD = 3
#: Limits of both step sizes, relative to the distance.
_SMALLEST, _LARGEST = 1e-5, 0.9
#: How often a value that lies on an edge moves.
_EDGE = 0.05
#: Steps for which noise is drawn at once, as far as memory (values, 64 MiB of float32) allows.
_STEPS, _VALUES = 16, 2**24


@attack(
    "boundary",
    version=1,
    knowledge="decision",
    norms=("l2", "linf"),
    paper="Brendel, Rauber & Bethge 2018, Decision-Based Adversarial Attacks: Reliable Attacks Against Black-Box "
    "Machine Learning Models",
    url="https://arxiv.org/abs/1712.04248",
    targeted=True,
    minimum_norm=True,
)
def boundary(
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    queries: Annotated[int, Ge(1)] = 5000,
    proposals: Annotated[int, Ge(1)] = 4,
    sideways_step: Annotated[float, Gt(0)] = 0.1,
    source_step: Annotated[float, Gt(0)] = 0.03,
    init_tries: Annotated[int, Ge(1)] = 100,
    draws: Annotated[int, Ge(1)] = 1,
    stop_inside: bool = True,
) -> Tensor:
    """Boundary attack: random moves around x and towards it, kept where they stay adversarial (Brendel et al. 2018).

    A proposal moves sideways at random, on the sphere around x, and then towards x. Both step sizes follow how often
    proposals are adversarial, for each example by itself and after every answer.

    Deviations: the walk starts on the boundary, found by bisection. A few proposals are asked about at a time. The
    step sizes settle where a fifth of the sideways moves and a tenth of the proposals are adversarial: on an
    adversarially trained digits network the paper's half and quarter made the steps vanish long before the nearest
    point was reached. Values on an edge of the box mostly stay there, as otherwise nearly every proposal would leave
    many edges at once. The linf form, which the paper does not have, clips to the cube around x instead of moving on
    a sphere; the faces of that cube are edges as well.

    Args:
        target: decision knowledge.
        x: ``(N, …)`` in the box; y: int64 ``(N,)``.
        queries: hard cap on the label queries of one example, every draw counted.
        proposals: asked about at a time from the same point, of which the nearest adversarial one is kept.
        sideways_step: length of the first sideways moves, relative to the distance.
        source_step: length of the first moves towards x, relative to the distance.
        init_tries: noise images tried as a start, and at most as many images of the shard.
        draws: answers per query, of which the majority counts, on a randomised defense (1 on others), where a
            proposal is kept only if it holds in most of nine further passes.
        stop_inside: an example is finished once its point is inside the ball; False spends all queries.

    Returns:
        x_adv, shaped like x; x itself where no start was found.
    """
    oracle = Oracle(target, y, queries, draws)
    nearest = Nearest(oracle, x)
    points, rows = find_start(nearest, init_tries)
    points = search(nearest, points[rows], rows, _BISECTIONS)
    walk = _Walk(nearest, rows, points, sideways_step, source_step)
    moved = torch.ones_like(rows, dtype=torch.bool)
    together = min(proposals, max(1, queries))
    block = max(1, min(_STEPS, _VALUES // (together * x.numel())))
    step = 0
    while True:
        done = torch.zeros_like(moved)
        if stop_inside and moved.any():
            done[moved] = nearest.inside(walk.rows[moved])
        done |= oracle.left[walk.rows] < together + 1
        if done.any():
            walk.keep(~done)
        if not len(walk.rows):
            return nearest.result()
        if step % block == 0:
            # Drawn for the whole shard, so that no example's numbers depend on another's success.
            noise = target.randn(block, together, len(x), x[0].numel(), like=x)
            coins = target.rand(block, together, len(x), x[0].numel(), like=x) < _EDGE
        moved = walk.step(noise[step % block], coins[step % block], ask_sideways=step % _PERIOD == 0)
        step += 1


class _Walk(Active):
    """The walking examples, ``rows``, each at an adversarial point with step sizes of its own.

    Images are flattened: ``x``, and ``delta``, the perturbation, are ``(M, d)``.
    """

    def __init__(self, nearest: Nearest, rows: Tensor, points: Tensor, sideways: float, source: float) -> None:
        self.nearest, self.oracle, self.threat = nearest, nearest.oracle, nearest.threat
        self.rows, self.x = rows, nearest.x[rows].flatten(1)
        self.delta = points.flatten(1) - self.x
        self.distance = length(self.delta, self.threat.norm)
        self.sideways, self.source = torch.full_like(self.distance, sideways), torch.full_like(self.distance, source)

    def step(self, noise: Tensor, coins: Tensor, *, ask_sideways: bool) -> Tensor:
        """Ask about some proposals for every example, keep the nearest; bool ``(M,)``: which examples moved.

        Args:
            noise: standard normal draws, ``(P, N, d)`` for P proposals and all examples of the shard.
            coins: bool, shaped like ``noise``: which values move even from an edge.
            ask_sideways: also ask about the first sideways move alone, to adapt its size.
        """
        if len(self.rows) < noise.shape[1]:
            noise, coins = noise[:, self.rows], coins[:, self.rows]
        number = len(noise)
        low, high = self.threat.low - self.x, self.threat.high - self.x
        beside = self._sideways(noise, coins, low, high)
        candidates = self._within(beside, (1 - self.source) * self.distance, low, high)
        asked = torch.cat([candidates, beside[:1]]) if ask_sideways else candidates
        points = (self.x + asked).clamp_(self.threat.low, self.threat.high).flatten(0, 1)
        images = points.view(-1, *self.nearest.x.shape[1:])
        hit = self.oracle.within(images, self.rows.repeat(len(asked))).view(len(asked), -1)
        if ask_sideways:
            self._adapt(self.sideways, hit[-1].to(noise.dtype) - _SIDEWAYS, _SIDEWAYS_RATE)
        hit = hit[:number]
        self._adapt(self.source, hit.sum(0) - number * _BOTH, _SOURCE_RATE)
        far = length(candidates.flatten(0, 1), self.threat.norm).view(number, -1).masked_fill(~hit, torch.inf)
        distance, best = far.min(0)
        moved = distance < self.distance
        if not moved.any():
            return moved
        everyone = torch.arange(len(self.rows), device=best.device)
        chosen = images.view(len(asked), -1, *images.shape[1:])[best, everyone]
        if self.oracle.target.randomized:
            moved[moved.clone()] = self.oracle(chosen[moved], self.rows[moved], draws=self.oracle.again)
        self.delta = torch.where(moved[:, None], candidates[best, everyone], self.delta)
        self.distance = torch.where(moved, distance, self.distance)
        self.nearest.offer(chosen[moved], self.rows[moved], distance[moved])
        return moved

    def _sideways(self, noise: Tensor, coins: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Perturbations ``(P, M, d)`` a random move beside the present one, no longer than it, in the box."""
        linf = self.threat.norm == "linf"
        edge = (self.delta <= low) | (self.delta >= high)
        if linf:
            edge |= self.delta.abs() >= (1 - 1e-6) * self.distance[:, None]
        noise = noise.masked_fill(edge & ~coins, 0.0)
        size = self.sideways * self.distance
        if not linf:
            away = self.delta / self.distance.clamp_min(1e-30)[:, None]
            noise = noise - (noise * away).sum(2, keepdim=True) * away
            size = size / torch.linalg.vector_norm(noise, dim=2).clamp_min(1e-30)
        return self._within(self.delta + size[..., None] * noise, self.distance, low, high)

    def _within(self, delta: Tensor, radius: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """``delta (P, M, d)`` moved to within ``radius (M,)``, then into the box."""
        if self.threat.norm == "linf":
            delta = torch.clamp(delta, -radius[:, None], radius[:, None])
        else:
            size = torch.linalg.vector_norm(delta, dim=2).clamp_min(1e-30)
            delta = delta * (radius / size).clamp_max(1.0)[..., None]
        return torch.clamp(delta, low, high)

    @staticmethod
    def _adapt(size: Tensor, excess: Tensor, rate: float) -> None:
        size.mul_(torch.exp(rate * excess)).clamp_(_SMALLEST, _LARGEST)
