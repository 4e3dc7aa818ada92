"""Lower bounds of linear functions of a network's stages over a box, by relaxing each unit (CROWN), rigorously.

Walked backward, a function of a stage's values is one of the outputs of the layers before it, λ · f. Whatever
numbers ν are chosen for a layer's inputs z = b + W v, weak duality gives over all inputs and all units' graphs

    min λ·f + …  ≥  Σ_u min over z in [low, high] of (λ f(z) - ν z)  +  ν·b + (ν W)·v + …

and the minimum of a unit's piecewise linear term lies at low, high or zero. So every choice of ν gives a bound, good or
bad: CROWN's are lines over and under a unit's graph (Zhang et al. 2018, arXiv:1811.00866), whose lower slopes may be
optimised (Xu et al. 2021, arXiv:2011.13824), and with a multiplier for each unit that branch and bound has fixed
(Wang et al. 2021, arXiv:2103.06624).

What floating point may add is bounded too: every number here is a sum of fewer than ``Layered.roundings`` terms, so it
is off by less than γ times the sum of its terms' sizes (Higham 2002, § 3.1), with γ = roundings · 2⁻⁵³ and a margin; λ
is off by as much, which counts as often as f is large. The sizes are carried along and taken off the bound.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from bench.certifying.network import ROUNDOFF, Array, Layered

#: ``(layer, λ (U, R)) -> ν (U, R)``.
Lines = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True)
class Limits:
    """What is known of the values in the box: of the input, and of what the units of each layer are given.

    Attributes:
        low, high: by source, 0 is the input, j the layer j - 1: ``(U, 1)``, or ``(U, R)`` with limits of each row.
        spreads: of each stage known so far (``Stage.spread``), ``(U, 1)``.
    """

    low: list[Tensor]
    high: list[Tensor]
    spreads: list[Tensor]


class _Pull(torch.autograd.Function):
    """``matrixᵀ rows`` of a sparse matrix, differentiable in the rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, matrix: scipy.sparse.csr_matrix) -> Tensor:
        ctx.matrix = matrix
        return torch.from_numpy(matrix.T @ rows.detach().numpy())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return torch.from_numpy(ctx.matrix @ grads[0].numpy()), None


@dataclass(frozen=True)
class Bound:
    """Lower bounds ``(R,)``, with what rounding may add taken off, and λ of each layer ``(U, R)`` by its number."""

    value: Tensor
    lam: dict[int, Tensor]


def lower_bound(layered: Layered, k: int, rows: Tensor, limits: Limits, lines: Lines) -> Bound:
    """Of each column of ``rows (M_k, R)`` times the values of stage k, a lower bound over the box.

    Args:
        limits: of the input and of the layers before stage k.
        lines: chooses ν.
    """
    coefficients = dict[int, Tensor]()

    def through(stage: int, weights: Tensor) -> Tensor:
        for j, matrix in layered.stages[stage].maps.items():
            pulled: Tensor = _Pull.apply(weights, matrix)
            coefficients[j] = coefficients[j] + pulled if j in coefficients else pulled
        return torch.from_numpy(layered.stages[stage].bias) @ weights

    total, sizes = through(k, rows), (limits.spreads[k] * rows.detach().abs()).sum(0)
    kept = dict[int, Tensor]()
    for j in range(k, 0, -1):
        lam = coefficients.pop(j, None)
        if lam is None:
            continue
        kept[j - 1] = lam
        nu = lines(j - 1, lam)
        low, high = limits.low[j], limits.high[j]
        total = total + _least(lam, nu, low, high, layered.slopes[j - 1]).sum(0)
        most = torch.maximum(low.abs(), high.abs())
        with torch.no_grad():
            sizes += (most * lam.abs()).sum(0) + ((most + limits.spreads[j - 1]) * nu.abs()).sum(0)
        total = total + through(j - 1, nu)
    if (lam := coefficients.get(0)) is not None:
        low, high = limits.low[0], limits.high[0]
        total = total + torch.minimum(lam * low, lam * high).sum(0)
        with torch.no_grad():
            sizes += (torch.maximum(low.abs(), high.abs()) * lam.abs()).sum(0)
    return Bound(total - error(layered) * sizes, kept)


def error(layered: Layered) -> float:
    """γ: how far a sum may be off, relative to the sum of its terms' sizes; twice what is needed."""
    return 2 * layered.roundings * ROUNDOFF


def _least(lam: Tensor, nu: Tensor, low: Tensor, high: Tensor, slopes: Array) -> Tensor:
    """The minimum of ``λ f(z) - ν z`` over z between low and high."""
    slope = torch.from_numpy(slopes)[:, None]
    at_low = lam * torch.maximum(low, slope * low) - nu * low
    at_high = lam * torch.maximum(high, slope * high) - nu * high
    least = torch.minimum(at_low, at_high)
    return torch.where((low < 0) & (high > 0), least.clamp_max(0.0), least)


class Relaxed:
    """Lines over and under each unit's graph between its limits: ν = λ · slope of the line that counts.

    Args:
        limits: of all layers, as split.
        lower: slope of the line under each undecided unit, by layer, ``(U, 1)`` or ``(U, R)``; default: 1 where more
            of the interval is above zero, else the unit's own slope.
        splits: 1 where a unit was fixed as active, -1 where as inactive, else 0; multipliers: of these, at least 0.
    """

    def __init__(
        self,
        layered: Layered,
        limits: Limits,
        lower: Sequence[Tensor] | None = None,
        splits: Sequence[Tensor] | None = None,
        multipliers: Sequence[Tensor] | None = None,
    ) -> None:
        self.lower, self.splits, self.multipliers = lower, splits, multipliers
        self.over, self.under, self.undecided = list[Tensor](), list[Tensor](), list[Tensor]()
        for j, slopes in enumerate(layered.slopes[: len(limits.low) - 1]):
            low, high, slope = limits.low[j + 1], limits.high[j + 1], torch.from_numpy(slopes)[:, None]
            mixed = (low < 0) & (high > 0)
            fixed = torch.where(low >= 0, 1.0, slope)
            chord = (high - slope * low) / torch.where(mixed, high - low, 1.0)
            self.over.append(torch.where(mixed, chord, fixed))
            self.under.append(torch.where(mixed, torch.where(high > -low, 1.0, slope), fixed))
            self.undecided.append(mixed)

    def __call__(self, j: int, lam: Tensor) -> Tensor:
        under = self.under[j]
        if self.lower is not None:
            under = torch.where(self.undecided[j], self.lower[j], under)
        nu = lam * torch.where(lam > 0, under, self.over[j])
        if self.splits is not None and self.multipliers is not None:
            nu = nu - self.splits[j] * self.multipliers[j]
        return nu


def numpy_row(values: Tensor) -> Array:
    """``(U, 1)`` as ``(U,)``."""
    return np.asarray(values[:, 0])
