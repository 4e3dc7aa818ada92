"""Whether the gradient that a defense hands out is that of its logits: finite differences beside it."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.contracts.defense import Defense
from bench.contracts.seeding import generator, seeded
from bench.contracts.threat import Lp
from bench.judging.places import margin, margin_gradient
from bench.storing.records import Slopes

#: Random directions at each point.
_DIRECTIONS = 8
#: Length of a difference, as a root mean square over the values in shares of the largest change that the ball allows.
_SCALES = (0.01, 0.1, 1.0)


def slopes(defense: Defense, points: Tensor, y: Tensor, threat: Lp, *seed: object) -> Slopes | None:
    """Compare the margin's gradient at ``points (N, …)`` with differences of the margin along it and across it.

    Steps, as of a rounded input, have no slope at a small scale but one at a larger; the best agreement counts.
    Every pass draws on the same random stream. None where there is no gradient to compare.
    """
    with seeded(*seed):
        grad, _ = margin_gradient(defense, points, y)
    if grad is None:
        return None
    size = grad.flatten(1).norm(dim=1)
    usable = torch.isfinite(size) & (size > 0)
    if not usable.any():
        return None
    points, y, grad = points[usable], y[usable], grad[usable] / size[usable].view(-1, *[1] * (points.ndim - 1))
    length = size[usable]
    noise = generator("probe", "directions", tuple(points.shape))
    across = [torch.randn(points.shape, generator=noise).sign().to(points) for _ in range(_DIRECTIONS)]
    values = points[0].numel()
    reach = min(threat.eps if threat.norm == "linf" else threat.eps / values**0.5, threat.high - threat.low)
    if threat.norm == "l0":  # positions, not a length
        reach = 0.1 * (threat.high - threat.low)
    best_along, best_across = -torch.inf, -torch.inf
    for scale in _SCALES:
        step = scale * reach
        pairs = [
            _difference(defense, points, y, grad, length, direction, threat, seed)
            for direction in (step * values**0.5 * grad, *(step * direction for direction in across))
        ]
        expected, measured = pairs[0]
        best_along = max(best_along, float((measured / expected).median()))
        expected, measured = (torch.cat(column) / length.repeat(_DIRECTIONS) for column in zip(*pairs[1:], strict=True))
        best_across = max(best_across, _correlation(expected, measured))
    return Slopes(points=len(points), along=round(best_along, 4), across=round(best_across, 4))


@torch.no_grad()
def _difference(
    defense: Defense,
    points: Tensor,
    y: Tensor,
    unit: Tensor,
    length: Tensor,
    step: Tensor,
    threat: Lp,
    seed: tuple[object, ...],
) -> tuple[Tensor, Tensor]:
    """What the gradient makes expect of the margin's difference over a step either way, and what it is; ``(N,)``."""
    ahead, behind = ((points + sign * step).clamp(threat.low, threat.high) for sign in (1, -1))
    values = []
    for at in (ahead, behind):
        with seeded(*seed):
            values.append(margin(defense(at), y).double())
    return length * (unit * (ahead - behind)).flatten(1).sum(1).double(), values[0] - values[1]


def _correlation(expected: Tensor, measured: Tensor) -> float:
    """Uncentred, in [-1, 1]; 0 where nothing changes at all."""
    product = (expected * measured).sum()
    scale = (expected.square().sum() * measured.square().sum()).sqrt()
    return float(product / scale) if scale > 0 and torch.isfinite(scale) else 0.0
