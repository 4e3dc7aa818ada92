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


def judging_error(survived: Array, draws: int) -> float:
    """Standard error of the mean of ``survived (N,)``, shares of ``draws`` each, for these very examples.

    How far the mean would move with other draws of the defense's randomness; the sampling of examples is not in it.
    """
    if draws < 2 or not len(survived):
        return 0.0
    return math.sqrt(float((survived * (1 - survived)).sum()) / (draws - 1)) / len(survived)


def by_strength(select: Array) -> list[int]:
    """The rows of ``select (attacks + 1, N)`` by their mean, the strongest attack first; the last row stays last.

    Where an attack was not measured (NaN) it leaves what the last row, the clean input, does.
    """
    means = [np.mean(np.where(np.isnan(row), select[-1], row)) for row in select[:-1]]
    return [*(int(i) for i in np.argsort(means, kind="stable")), len(select) - 1]


def strongest_is_worse(select: Array, draws: int, splits: int = 8) -> bool:
    """Whether the strongest attack alone leaves less than the worst attack of each example, chosen on so few draws.

    The selection draws alone decide: they are split at random into two halves, the attacks are chosen on the one and
    scored on the other, and the two ways of choosing compared over all ``splits``.

    Args:
        select: ``(attacks + 1, N)`` shares of ``draws`` survived, the clean input last; NaN where not measured.
    """
    absent = np.isnan(select)
    counts = np.rint(np.where(absent, 0, select) * draws).astype(np.int64)
    half, random = draws // 2, np.random.default_rng(0)
    gain = 0.0
    for _ in range(splits):
        first = random.hypergeometric(counts, draws - counts, half)
        choose = np.where(absent, np.nan, first / half)
        score = np.where(absent, np.nan, (counts - first) / (draws - half))
        order = by_strength(choose)
        each, _ = worst_case(choose, score, order)
        alone, _ = worst_case(choose, score, [order[0], order[-1]])
        gain += float(each.mean() - alone.mean())
    return gain > 0


def worst_case(select: Array, report: Array, order: list[int]) -> tuple[Array, NDArray[np.int64]]:
    """Per-example survival under the worst of all attacks, and which attack that is.

    The attack is chosen on ``select`` and scored on ``report``, draws it was not chosen on, so that luck is not
    counted as strength. For a deterministic defense the two are equal and this is the plain minimum.
    """
    chosen = worst_choice(select, order)
    return report[chosen, np.arange(report.shape[1])], chosen
