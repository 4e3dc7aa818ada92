"""HopSkipJump: a boundary walk that sees nothing but labels (Chen, Jordan & Wainwright 2020)."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from attacks.toolkit.decision_walk import MAX_BISECTIONS, Nearest, Oracle, find_start, search
from attacks.toolkit.projections import length, per_example, steepest
from bench.contracts.attack import attack
from bench.contracts.target import Target

#: Halvings of one step before the estimate is given up.
_MAX_HALVINGS = 12
#: Values of one batch of probes (33 million float32 are 128 MiB).
_VALUES = 2**25
#: Directions made orthogonal to one another: more gain little on large images, and cost much.
_BLOCK = 256
#: A probe's length in units of the perturbation's l2 length over √d. The paper's length (the l_p length over d) is
#: at the bisection's own tolerance and, measured on small models, clearly weaker.
_PROBE = {"linf": 3.0, "l2": 8.0}


@attack(
    "hopskipjump",
    version=1,
    knowledge="decision",
    norms=("linf", "l2"),
    targeted=True,
    minimum_norm=True,
    paper="Chen, Jordan & Wainwright 2020, HopSkipJumpAttack: A Query-Efficient Decision-Based Attack",
    url="https://arxiv.org/abs/1904.02144",
)
def hopskipjump(
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    queries: Annotated[int, Ge(1)] = 5000,
    initial_probes: Annotated[int, Ge(1)] = 100,
    max_probes: Annotated[int, Ge(1)] = 10000,
    gamma: Annotated[float, Gt(0)] = 1.0,
    init_tries: Annotated[int, Ge(1)] = 100,
    draws: Annotated[int, Ge(1)] = 1,
    stop_inside: bool = True,
) -> Tensor:
    """HopSkipJump: estimate the boundary's normal from labels, step along it, search back to the boundary.

    The examples of a shard walk side by side: one probe batch, one step and one bisection serve all of them. The
    walk shortens the distance to x; what is returned is its nearest point, moved onto the ball where it lies
    outside. A point inside is stretched to the surface of the ball, away from the boundary, if that fools as well;
    with a randomised defense an example stays until its stretched point fools nearly always. Directions are
    orthogonal within a block of at most 256, which makes the estimate better than independent directions do when
    there are about as many probes as values.

    Args:
        target: decision knowledge.
        x: ``(N, …)`` in the box; y: int64 ``(N,)``.
        queries: hard cap on the label queries of one example, every draw counted.
        initial_probes: probes of the first estimate, at most half as many as an image has values (small images
            need more steps rather than better ones); the t-th estimate uses √t times as many.
        max_probes: upper limit of that.
        gamma: the bisection stops at gamma/d^{3/2} (l2) or gamma/d² (linf) of the distance, d the number of values
            of an image; probes are 3 (linf) or 8 (l2) times gamma/√d of the perturbation's l2 length.
        init_tries: noise images tried as a start; after them at most as many images of other classes in the shard.
        draws: answers per query, of which the majority counts, on a randomised defense (1 on others).
        stop_inside: an example is finished once its point is inside the ball; False spends all queries.

    Returns:
        x_adv, shaped like x; x itself where no start was found.
    """
    oracle = Oracle(target, y, queries, draws)
    walk = Walk(oracle, x, gamma)
    points, active = find_start(walk.nearest, init_tries)
    walk.search(points[active], active)
    few = min(initial_probes, max(1, x[0].numel() // 2))
    step = 1
    while len(active):
        if stop_inside:
            active = active[~walk.nearest.inside(active)]
        active = active[oracle.left[active] > walk.reserve]
        if not len(active):
            break
        probes = min(math.ceil(few * math.sqrt(step)), max_probes)
        normal = walk.normal(active, probes)
        walk.search(walk.step(normal, active, step), active)
        step += 1
    return walk.nearest.result()


class Walk:
    """The state of all examples of a shard: where each stands on its boundary, and how far that is from x."""

    def __init__(self, oracle: Oracle, x: Tensor, gamma: float) -> None:
        self.oracle, self.x, self.target = oracle, x, oracle.target
        self.norm = self.target.ball.norm
        dim = x[0].numel()
        #: Length of a probe relative to the distance; grows for an example whose probes all agree.
        self.delta = x.new_full((len(x),), _PROBE[self.norm] * gamma / math.sqrt(dim))
        theta = gamma / dim ** (2.0 if self.norm == "linf" else 1.5)
        self.bisections = max(1, min(math.ceil(math.log2(1 / theta)), MAX_BISECTIONS))
        #: Questions kept back from the probes for the step and the search that follow.
        self.reserve = self.bisections + oracle.confirmations + 4
        self.point, self.nearest = x.clone(), Nearest(oracle, x)

    def search(self, points: Tensor, rows: Tensor) -> None:
        """Move from adversarial ``points`` towards x to the boundary, by bisection."""
        self.point[rows] = search(self.nearest, points, rows, self.bisections)

    def normal(self, rows: Tensor, probes: int) -> Tensor:
        """Estimate the boundary's normal, pointing to the adversarial side, from ``probes`` labels each.

        Mean of (φ - mean φ)·u over directions u with answers φ = ±1 (eq. 16 of the paper), u after clipping to
        the box.
        """
        threat, start = self.target.ball, self.point[rows]
        number = (self.oracle.left[rows] - self.reserve).clamp_max(probes)
        delta = self.delta[rows] * (start - self.x[rows]).flatten(1).norm(dim=1).clamp_min(1e-6)
        phi_sum, u_sum, phi_u_sum = torch.zeros_like(delta), torch.zeros_like(start), torch.zeros_like(start)
        directions = self._directions(int(number.max()))
        first = 0
        for some in directions.split(max(1, _VALUES // start.numel())):
            points = start + per_example(delta, start) * some[:, None]
            points.clamp_(threat.low, threat.high)
            used = torch.arange(first, first + len(some), device=rows.device)[:, None] < number
            phi = torch.zeros(used.shape, dtype=start.dtype, device=start.device)
            index = rows.expand_as(used)[used]
            phi[used] = 2.0 * self.oracle(points[used], index).to(phi.dtype) - 1.0
            u = (points - start) / per_example(delta, start)
            phi_sum += phi.sum(0)
            u_sum += torch.einsum("bn,bn...->n...", used.to(u.dtype), u)
            phi_u_sum += torch.einsum("bn,bn...->n...", phi, u)
            first += len(some)
        mean = phi_sum / number
        agree = mean.abs() == 1
        # Probes shorter than the search is exact, or than the defense resolves, say nothing: lengthen them.
        self.delta[rows[agree]] *= 2
        return torch.where(per_example(agree, start), phi_u_sum, phi_u_sum - per_example(mean, start) * u_sum)

    def step(self, normal: Tensor, rows: Tensor, number: int) -> Tensor:
        """Step along the normal, distance/√t first and halved until adversarial; returns the new points."""
        threat, start = self.target.ball, self.point[rows]
        direction = steepest(normal, threat.norm)
        size = length(start - self.x[rows], self.norm) / math.sqrt(number)
        points = start.clone()
        pending = torch.arange(len(rows), device=rows.device)
        for _ in range(_MAX_HALVINGS):
            candidates = start[pending] + per_example(size[pending], start) * direction[pending]
            candidates.clamp_(threat.low, threat.high)
            hit = self.oracle(candidates, rows[pending])
            points[pending[hit]] = candidates[hit]
            pending = pending[~hit]
            if not len(pending):
                break
            size[pending] /= 2
        return points

    def _directions(self, number: int) -> Tensor:
        """Random directions of length 1, ``(number, C, H, W)``, orthogonal in blocks.

        All examples share them, so that none depends on which others are still walking.
        """
        x = self.x
        dim = x[0].numel()
        blocks = []
        block = min(dim, _BLOCK)
        for first in range(0, number, block):
            gaussian = self.target.randn(dim, min(block, number - first), like=x)
            blocks.append(torch.linalg.qr(gaussian).Q.T)
        return torch.cat(blocks).view(number, *x.shape[1:])
