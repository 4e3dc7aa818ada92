"""The plots of a detector's page: ROC curves and histograms of the score, as places of an inline SVG."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from bench.contracts.words import Tier
from bench.summary.metrics import Array
from bench.summary.numbers import DetectionSummary, TierSummary

#: What a tier's attacks are shown, and the colour of their curve.
SHOWN: dict[Tier, tuple[str, str]] = {
    "oblivious": ("attacks that are not shown the detector", "s0"),
    "transfer": ("attacks made on a copy or another model", "s2"),
    "adaptive": ("attacks that know the detector", "s1"),
}
BINS = 40
#: The share of all scores beyond either end of the histograms' axis; these are counted in the outermost bins.
_TAIL = 0.005
#: Where positive scores reach beyond this many times their median, the axis is logarithmic: most would share a bin.
_SKEWED = 30
#: Shares of a series' scores that lie below the numbers of its table.
QUANTILES = (0.05, 0.5, 0.95)


@dataclass(frozen=True)
class Curve:
    """A tier's ROC curve, corners from (0, 0) to (1, 1), and where the fixed threshold lies on it."""

    tier: TierSummary
    text: str
    colour: str
    corners: list[tuple[float, float]]
    at_threshold: tuple[float, float]


def curves(detection: DetectionSummary) -> list[Curve]:
    """One curve for each tier that has a success; corners on a straight line are left out."""
    found = []
    for tier in detection.tiers.values():
        corners = tier.scores.curve()
        if corners and tier.true_positive_rate:
            at = detection.false_positive_rate.value, tier.true_positive_rate.value
            found.append(Curve(tier, *SHOWN[tier.tier], _bends(corners), at))
    return found


def _bends(corners: list[tuple[float, float]]) -> list[tuple[float, float]]:
    kept = corners[:1]
    for here, after in itertools.pairwise(corners[1:]):
        before = kept[-1]
        cross = (here[0] - before[0]) * (after[1] - here[1]) - (here[1] - before[1]) * (after[0] - here[0])
        if abs(cross) > 1e-12:
            kept.append(here)
    return [*kept, corners[-1]]


@dataclass(frozen=True)
class Series:
    """The scores of one kind of input: shares by bin, of all of them, and the numbers of its table.

    ``without`` counts the scores that are no finite number: these are in no bin and no quantile.
    """

    name: str
    text: str
    colour: str
    shares: list[float]
    n: int
    without: int
    quantiles: list[float]
    rejected: float


@dataclass(frozen=True)
class Histograms:
    """Series on one axis from ``low`` to ``high``; ``highest`` is the largest share of a bin."""

    low: float
    high: float
    logarithmic: bool
    series: list[Series]

    @property
    def highest(self) -> float:
        return max(max(one.shares) for one in self.series)

    def place(self, score: float) -> float:
        """How far along the axis a score stands, in [0, 1]."""
        return float(_places(np.array([score]), self.low, self.high, self.logarithmic)[0])


def _places(scores: Array, low: float, high: float, logarithmic: bool) -> Array:
    """How far along the axis each score stands, in [0, 1]."""
    scores = scores.clip(low, high)
    if logarithmic:
        return np.asarray(np.log(scores / low) / np.log(high / low), dtype=np.float64)
    return (scores - low) / (high - low)


def histograms(detection: DetectionSummary) -> Histograms | None:
    """The scores of clean images, of noise and of each tier's successes; None without any finite score."""
    kinds = [
        ("clean", "clean test examples", "clean", np.array(detection.clean_scores)),
        ("noise", "random noise of the same norm", "s3", np.array(detection.noise_scores)),
        *((name, SHOWN[name][0], SHOWN[name][1], tier.scores.positive) for name, tier in detection.tiers.items()),
    ]
    together = np.concatenate([scores[np.isfinite(scores)] for *_, scores in kinds])
    if not len(together):
        return None
    low, high = (float(end) for end in np.quantile(together, [_TAIL, 1 - _TAIL]))
    low, high = min(low, detection.threshold), max(high, detection.threshold)
    high = high if high > low else low + 1.0
    logarithmic = low > 0 and high > _SKEWED * float(np.median(together))
    series = [
        _series(name, text, colour, scores, _places(scores[np.isfinite(scores)], low, high, logarithmic), detection)
        for name, text, colour, scores in kinds
        if np.isfinite(scores).any()
    ]
    return Histograms(low, high, logarithmic, series)


def _series(
    name: str, text: str, colour: str, scores: Array, places: Array, detection: DetectionSummary
) -> Series:
    counts, _ = np.histogram(places, BINS, (0.0, 1.0))
    quantiles = np.quantile(scores[np.isfinite(scores)], QUANTILES).tolist()
    rejected = float((scores > detection.threshold).mean())
    shares = (counts / len(scores)).tolist()
    return Series(name, text, colour, shares, len(scores), len(scores) - len(places), quantiles, rejected)
