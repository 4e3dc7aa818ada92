"""Slopes of functions that have no gradient, from differences along random directions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from bench.contracts.target import Target

#: How the directions of finite differences are drawn: orthogonal ones, random signs, or independent Gaussians.
Directions = Literal["orthogonal", "rademacher", "gaussian"]
#: Rows that are asked at a time.
_ROWS = 4096


def directions_of(target: Target, dim: int, samples: int, kind: Directions) -> Tensor:
    """Directions ``(samples, dim)`` of root mean square 1 from the attack's generator; orthogonal: at most dim."""
    count = min(samples, dim) if kind == "orthogonal" else samples
    gaussian = torch.randn(dim, count, generator=target.generator, dtype=torch.float64)
    if kind == "orthogonal":
        scaled: Tensor = torch.linalg.qr(gaussian).Q.T * dim**0.5
        return scaled
    return gaussian.T if kind == "gaussian" else gaussian.T.sign()


def slopes(
    x: Tensor, directions: Tensor, sigma: float, values: Callable[[Tensor, int], Tensor], number: int
) -> Tensor:
    """Gradients ``(M, number, …)`` at ``x (M, …)`` from antithetic differences.

    Args:
        directions: ``(samples, dim)``, shared by all rows.
        sigma: root mean square of a probe.
        values: ``(rows, repeats) -> (len(rows), number)``, where rows are those of x stacked ``repeats`` times.
    """
    dim, pairs = x[0].numel(), len(directions)
    grads = x.new_zeros(len(x), number, dim)
    for some in directions.split(max(1, _ROWS // max(1, len(x)))):
        probes = torch.cat([some, -some]) * sigma
        rows = (x.flatten(1)[None] + probes[:, None]).reshape(-1, *x.shape[1:])
        seen = values(rows, len(probes)).view(2, len(some), len(x), number)
        seen = torch.nan_to_num(seen, nan=0.0, posinf=0.0, neginf=0.0)
        grads += torch.einsum("smk,sd->mkd", seen[0] - seen[1], some) / (2 * sigma * pairs)
    return grads.view(len(x), number, *x.shape[1:])
