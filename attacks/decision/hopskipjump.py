"""HopSkipJump: a boundary walk that sees nothing but labels (Chen, Jordan & Wainwright 2020)."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from attacks.toolkit.boundary_walk import Walk
from attacks.toolkit.decision_walk import Oracle
from attacks.toolkit.projections import length, per_example, steepest
from bench.contracts.attack import attack
from bench.contracts.target import Target

#: Halvings of one step before the estimate is given up.
_MAX_HALVINGS = 12


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
    walk = Walk(Oracle(target, y, queries, draws), x, gamma)
    return walk.run(_step, initial_probes, max_probes, init_tries, stop_inside)


def _step(walk: Walk, normal: Tensor, rows: Tensor, number: int) -> None:
    """Step along the normal, distance/√t first and halved until adversarial, and search back to the boundary."""
    threat, start = walk.target.ball, walk.point[rows]
    direction = steepest(normal, threat.norm)
    size = length(start - walk.x[rows], walk.norm) / math.sqrt(number)
    points = start.clone()
    pending = torch.arange(len(rows), device=rows.device)
    for _ in range(_MAX_HALVINGS):
        candidates = start[pending] + per_example(size[pending], start) * direction[pending]
        candidates.clamp_(threat.low, threat.high)
        hit = walk.oracle(candidates, rows[pending])
        points[pending[hit]] = candidates[hit]
        pending = pending[~hit]
        if not len(pending):
            break
        size[pending] /= 2
    walk.search(points, rows)
