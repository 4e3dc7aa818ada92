"""Limits of what units are given over a box: by intervals, then, where these leave a unit undecided, by relaxation."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from bench.certifying.network import Layered
from bench.certifying.relaxation import Limits, Relaxed, error, lower_bound, numpy_row

#: Rows that are walked backward at once.
_CHUNK = 256

#: ``(stage, rows (M, R), limits of the layers before it) -> lower bounds (R,)`` of rows times the stage's values.
Rows = Callable[[int, Tensor, Limits], Tensor]


def box(x: Tensor, eps: float, low: float, high: float) -> Limits:
    """Limits of the input alone: within ``eps`` of ``x`` and within ``[low, high]``, rounded outward.

    Inputs of float32 may lie where the ends of the box are rounded to.
    """
    low, high = min(low, float(np.float32(low))), max(high, float(np.float32(high)))
    point = x.detach().double().cpu().flatten().numpy()
    below, above = np.nextafter(point - eps, -np.inf).clip(low, high), np.nextafter(point + eps, np.inf).clip(low, high)
    return Limits([torch.from_numpy(below)[:, None]], [torch.from_numpy(above)[:, None]], [])


def by_intervals(layered: Layered, ball: Limits) -> Limits:
    """Limits of all units and of the logits by interval arithmetic; those of the logits stand last."""
    limits = Limits(list(ball.low), list(ball.high), [])
    for k in range(len(layered.stages)):
        low, high = _interval(layered, limits, k)
        limits.low.append(low)
        limits.high.append(high)
    return limits


def refined(layered: Layered, known: Limits, bound: Rows, deadline: float = float("inf")) -> Limits:
    """Limits where those that are known leave a unit undecided, by bounds of what it is given; layer by layer.

    Args:
        bound: lower bounds of combinations of a stage's values, given the limits of the layers before it.
        deadline: of processor time, from which on what is known stays as it is.
    """
    limits = Limits(known.low[:2], known.high[:2], known.spreads[:1])
    for k in range(1, len(layered.slopes)):
        low, high = _interval(layered, limits, k)
        low, high = torch.maximum(low, known.low[k + 1]), torch.minimum(high, known.high[k + 1])
        undecided = ((low < 0) & (high > 0)).flatten().nonzero().flatten()
        for some in undecided.split(_CHUNK):
            if time.process_time() > deadline:
                break
            rows = torch.zeros(len(low), 2 * len(some), dtype=torch.float64)
            rows[some, torch.arange(len(some))] = 1.0
            rows[some, len(some) + torch.arange(len(some))] = -1.0
            least, most = bound(k, rows, limits).chunk(2)
            low[some, 0] = torch.maximum(low[some, 0], least)
            high[some, 0] = torch.minimum(high[some, 0], -most)
        limits.low.append(low)
        limits.high.append(high)
    _interval(layered, limits, len(layered.slopes))
    return limits


def by_relaxation(layered: Layered, known: Limits) -> Limits:
    """Limits of all units, each layer's by CROWN where those that are known leave a unit undecided."""
    lines: tuple[int, Relaxed] | None = None

    def bound(k: int, rows: Tensor, limits: Limits) -> Tensor:
        nonlocal lines
        if lines is None or lines[0] != k:
            lines = k, Relaxed(layered, limits)
        return lower_bound(layered, k, rows, limits, lines[1]).value

    return refined(layered, known, bound)


def _interval(layered: Layered, limits: Limits, k: int) -> tuple[Tensor, Tensor]:
    """Limits ``(M, 1)`` of stage k by those of its sources; its spread is added to ``limits``."""
    stage = layered.stages[k]
    ends = list(zip(limits.low, limits.high, strict=True))
    sizes = {j: numpy_row(torch.maximum(low.abs(), high.abs())) for j, (low, high) in enumerate(ends)}
    spread = stage.spread(sizes)
    centre, half = stage.bias, error(layered) * spread
    for j, matrix in stage.maps.items():
        low, high = (numpy_row(end) for end in ends[j])
        if j:
            low, high = (np.maximum(end, layered.slopes[j - 1] * end) for end in (low, high))
        centre, half = centre + matrix @ ((low + high) / 2), half + abs(matrix) @ ((high - low) / 2)
    limits.spreads.append(torch.from_numpy(spread)[:, None])
    return torch.from_numpy(centre - half)[:, None], torch.from_numpy(centre + half)[:, None]
