"""Bounds made better by gradient: the slopes of the lines under units, and the multipliers of units that were fixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.certifying.network import Layered
from bench.certifying.relaxation import Limits, Relaxed, lower_bound

#: Steps of Adam in slopes and in multipliers, and what remains of them after each.
_SLOPE, _MULTIPLIER, _DECAY = 0.2, 0.1, 0.97
#: A unit's share of its layer's gain when it is decided: of what its line over lies above its graph, and of what
#: its line under lies below it.
_OVER, _UNDER = 1.0, 0.3


@dataclass(frozen=True)
class Best:
    """The best bounds ``(R,)`` that were met, and where: float32 slopes and multipliers by layer, ``(U, R)``.

    Attributes:
        gain: by layer ``(U, R)``, how much each undecided unit's relaxation costs the bound, about; else 0.
    """

    value: Tensor
    slopes: list[Tensor]
    multipliers: list[Tensor]
    gain: list[Tensor]


def optimised(
    layered: Layered,
    k: int,
    rows: Tensor,
    limits: Limits,
    *,
    steps: int,
    splits: Sequence[Tensor] | None = None,
    start: tuple[Sequence[Tensor], Sequence[Tensor]] | None = None,
    enough: float | None = 0.0,
) -> Best:
    """As :func:`lower_bound`, maximised over slopes and multipliers.

    Args:
        splits: see :class:`Relaxed`.
        start: slopes and multipliers to begin with; default: those of CROWN, and zero.
        enough: stops when every row's bound is above this; None: takes all steps.
    """
    relaxed = Relaxed(layered, limits, splits=splits)
    count = rows.shape[1]
    if start is None:
        slopes = [under.expand(-1, count).clone() for under in relaxed.under]
        multipliers = [torch.zeros_like(slope) for slope in slopes]
    else:
        slopes, multipliers = ([part.double() for part in parts] for parts in start)
    own = [torch.from_numpy(slope)[:, None] for slope in layered.slopes]
    movable = slopes + (multipliers if splits is not None else [])
    relaxed.lower, relaxed.multipliers = slopes, multipliers
    groups = [{"params": slopes, "lr": _SLOPE}]
    groups += [{"params": multipliers, "lr": _MULTIPLIER}] if splits is not None else []
    adam = torch.optim.Adam(groups, betas=(0.9, 0.9))
    best: Best | None = None
    for step in range(steps + 1):
        for part in movable:
            part.requires_grad_(step < steps)
        with torch.set_grad_enabled(step < steps):
            bound = lower_bound(layered, k, rows, limits, relaxed)
        value = bound.value.detach()
        if best is None:
            gain = _gains(relaxed, limits, bound.lam, layered)
            best = Best(value, [_kept(part) for part in slopes], [_kept(part) for part in multipliers], gain)
        else:
            _improve(best, value, slopes, multipliers)
        if step == steps or (enough is not None and bool((best.value > enough).all())):
            break
        grads = torch.autograd.grad(-bound.value.sum(), movable, allow_unused=True)
        for part, grad in zip(movable, grads, strict=True):
            part.grad = torch.zeros_like(part) if grad is None else grad
            part.requires_grad_(False)
        adam.step()
        for group in adam.param_groups:
            group["lr"] *= _DECAY
        for slope, least in zip(slopes, own, strict=False):
            torch.maximum(slope.clamp_(max=1.0), least, out=slope)
        for multiplier in multipliers:
            multiplier.clamp_(min=0.0)
    assert best is not None
    return best


def _kept(part: Tensor) -> Tensor:
    return part.detach().float()


def _improve(best: Best, value: Tensor, slopes: list[Tensor], multipliers: list[Tensor]) -> None:
    better = value > best.value
    if better.any():
        best.value[better] = value[better]
        for kept, now in zip(best.slopes + best.multipliers, slopes + multipliers, strict=True):
            kept[:, better] = now.detach()[:, better].float()


def _gains(relaxed: Relaxed, limits: Limits, lam: dict[int, Tensor], layered: Layered) -> list[Tensor]:
    """How much of the bound each undecided unit's lines cost, at most, about (as in BaBSR, Bunel et al. 2020)."""
    gains = []
    for j, over in enumerate(relaxed.over):
        if j not in lam:
            gains.append(torch.zeros_like(over))
            continue
        low, high, weight = limits.low[j + 1], limits.high[j + 1], lam[j].detach()
        above = high - over * high
        below = torch.minimum(high, -low)
        cost = _OVER * above * (-weight).clamp_min(0) + _UNDER * below * weight.clamp_min(0)
        gains.append(torch.where(relaxed.undecided[j], cost, 0.0))
    return gains
