"""Statistics of a benchmark, each a plain function of arrays."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: Two-sided 95 % quantile of the standard normal distribution.
Z95 = 1.959963984540054


def wilson(share: float, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson score interval of a share observed on ``n`` examples (Wilson 1927), within [0, 1].

    With a mean of per-example probabilities instead of 0/1 outcomes it is conservative: their variance is at
    most p(1-p).
    """
    if n == 0:
        return 0.0, 1.0
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def worst_choice(select: Array, order: list[int]) -> NDArray[np.int64]:
    """Index of the attack that is worst for each example.

    Args:
        select: ``(attacks, N)`` shares of draws survived on the selection stream; NaN where not measured.
        order: attack indices by precedence: the first of equals is taken.
    """
    filled = np.where(np.isnan(select), np.inf, select)[order]
    worst: NDArray[np.int64] = np.asarray(order, dtype=np.int64)[filled.argmin(0)]
    return worst


def worst_case(select: Array, report: Array, order: list[int]) -> tuple[Array, NDArray[np.int64]]:
    """Per-example survival under the worst of all attacks, and which attack that is.

    The attack is chosen on ``select`` and scored on ``report``, draws it was not chosen on, so that luck is not
    counted as strength. For a deterministic defense the two are equal and this is the plain minimum.
    """
    chosen = worst_choice(select, order)
    return report[chosen, np.arange(report.shape[1])], chosen
