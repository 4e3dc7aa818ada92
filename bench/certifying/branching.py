"""Branch and bound over the activity of undecided units: the box is cut in two where a unit is zero.

Every part has bounds of its own, each by relaxation with multipliers for the units that were fixed. A part whose bound
is above the goal is closed; the whole is proven when none is left.
"""

from __future__ import annotations

import heapq
import itertools
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.certifying.network import Layered
from bench.certifying.optimising import Best, optimised
from bench.certifying.relaxation import Limits

#: Parts that are cut at once, units that are tried for each, steps of each half's bound.
_PARTS, _TRIED, _STEPS = 16, 3, 10
#: Parts that are kept at most: of a network of some thousand units, about 0.5 GB.
_MOST = 8000


@dataclass(frozen=True)
class _Part:
    """One part: which units are fixed, int8 ``(U,)`` by layer, and what its bound was reached with."""

    splits: list[Tensor]
    slopes: list[Tensor]
    multipliers: list[Tensor]
    gain: list[Tensor]


@dataclass(frozen=True)
class Proof:
    """What branch and bound came to: a lower bound, how many parts it looked at, and whether it reached the goal."""

    value: float
    parts: int
    proven: bool


def branch_and_bound(
    layered: Layered, row: Tensor, limits: Limits, goal: float, seconds: float, steps: int = _STEPS
) -> Proof:
    """Prove that ``row (K,) · logits`` is above ``goal`` everywhere in the box, or say how far it came.

    Args:
        limits: of all units.
        seconds: of processor time.
    """
    k, deadline = len(layered.slopes), time.process_time() + seconds
    start = [torch.zeros(len(slopes), 1, dtype=torch.int8) for slopes in layered.slopes]
    best = optimised(layered, k, row[:, None], limits, steps=steps, splits=_double(start), enough=goal)
    order, waiting, parts = itertools.count(), list[tuple[float, int, _Part]](), 1
    closed = float("inf")

    def note(found: Best, splits: list[Tensor]) -> None:
        nonlocal closed
        for i, value in enumerate(found.value.tolist()):
            if value > goal:
                closed = min(closed, value)
                continue
            columns = ([part[:, i].clone() for part in parts] for parts in (found.slopes, found.multipliers))
            slopes, multipliers = columns
            gain = [part[:, min(i, part.shape[1] - 1)].clone() for part in found.gain]
            chosen = _Part([split[:, i].clone() for split in splits], slopes, multipliers, gain)
            heapq.heappush(waiting, (value, next(order), chosen))

    note(best, start)
    while waiting and time.process_time() < deadline and len(waiting) < _MOST:
        taken = [heapq.heappop(waiting) for _ in range(min(_PARTS, len(waiting)))]
        halves = _halves(layered, row, limits, [part for _, _, part in taken])
        if halves is None:  # nothing is left to fix in one of them
            for one in taken:
                heapq.heappush(waiting, one)
            break
        splits, parents = halves
        count = splits[0].shape[1]
        found = optimised(
            layered, k, row[:, None].expand(-1, count), _within(limits, splits), steps=steps, splits=_double(splits),
            start=parents, enough=goal,
        )  # fmt: skip
        # A half's bound is no worse than that of the whole.
        found.value.copy_(torch.maximum(found.value, torch.tensor([value for value, _, _ in taken] * 2).double()))
        parts += count
        note(found, splits)
    return Proof(min([closed, *(value for value, _, _ in waiting)]), parts, not waiting)


def _double(splits: list[Tensor]) -> list[Tensor]:
    return [split.double() for split in splits]


def _within(limits: Limits, splits: list[Tensor]) -> Limits:
    """Limits of each row, where its splits hold."""
    low, high = [limits.low[0]], [limits.high[0]]
    for split, below, above in zip(splits, limits.low[1:], limits.high[1:], strict=False):
        low.append(torch.where(split > 0, below.clamp_min(0.0), below))
        high.append(torch.where(split < 0, above.clamp_max(0.0), above))
    return Limits(low, high, limits.spreads)


def _halves(
    layered: Layered, row: Tensor, limits: Limits, parts: list[_Part]
) -> tuple[list[Tensor], tuple[list[Tensor], list[Tensor]]] | None:
    """Splits of both halves of every part, active ones first, and what to start their bounds from.

    Of the units that cost a part most, that is fixed whose worse half is best.
    """
    gains = torch.stack([torch.cat(part.gain) for part in parts], 1)
    fixed = torch.cat([torch.stack([part.splits[j] for part in parts], 1) for j in range(len(layered.slopes))])
    cost, units = gains.where(fixed == 0, 0.0).topk(min(_TRIED, len(gains)), dim=0)
    if bool((cost[0] <= 0).any()):
        return None
    sizes, count, tried = [len(slopes) for slopes in layered.slopes], len(parts), len(units)
    whole = fixed.repeat(1, 2 * tried)
    which = units.flatten().repeat(2)  # half, candidate, part
    whole[which, torch.arange(len(which))] = torch.tensor([1, -1], dtype=torch.int8).repeat_interleave(tried * count)
    slopes = [torch.stack([part.slopes[j] for part in parts], 1) for j in range(len(sizes))]
    multipliers = [torch.stack([part.multipliers[j] for part in parts], 1) for j in range(len(sizes))]
    times = 2 * tried
    splits = list(whole.split(sizes))
    start = [part.repeat(1, times) for part in slopes], [part.repeat(1, times) for part in multipliers]
    values = optimised(
        layered, len(sizes), row[:, None].expand(-1, times * count), _within(limits, splits), steps=0,
        splits=_double(splits), start=start, enough=None,
    ).value  # fmt: skip
    chosen = values.view(2, tried, count).amin(0).where(cost > 0, -torch.inf).argmax(0)
    columns = chosen * count + torch.arange(count)
    columns = torch.cat([columns, columns + tried * count])
    kept = [split[:, columns] for split in splits]
    return kept, ([part.repeat(1, 2) for part in slopes], [part.repeat(1, 2) for part in multipliers])
