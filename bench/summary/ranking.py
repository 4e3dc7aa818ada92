"""How well a score ranks adversarial inputs above clean ones: ROC curve, area, thresholds, bootstrap over images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.summary.metrics import Array

#: Resamples of the images behind an interval of the area under the ROC curve.
RESAMPLES = 1000
#: At most so many numbers of a resample are held at once.
_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Scores:
    """Detector scores of clean images and of adversarial inputs made of some of them; larger is more adversarial.

    Attributes:
        clean: ``(N,)``, one of each image.
        positive: ``(P,)``, of adversarial inputs.
        image: ``(P,)`` the position in ``clean`` of the image that each was made of; one may occur many times.
        weight: ``(P,)`` how much each counts: the share of a randomised defense's draws that it fooled.
    """

    clean: Array
    positive: Array
    image: NDArray[np.int64]
    weight: Array

    def area(self) -> float | None:
        """Area under the ROC curve: P(positive > clean) + ½ P(equal). None without positives or clean images."""
        found = self._areas(np.ones((1, len(self.clean))))
        return float(found[0]) if len(found) else None

    def area_interval(self, seed: int, resamples: int = RESAMPLES) -> tuple[float, float] | None:
        """95 % percentile bootstrap over images (Efron 1979): an image is drawn with all that was made of it."""
        n = len(self.clean)
        if self.area() is None:
            return None
        generator = np.random.default_rng(seed)
        size = max(1, _AT_ONCE // max(n, len(self.positive)))
        parts = [
            self._areas(generator.multinomial(n, np.full(n, 1 / n), min(size, resamples - start)).astype(float))
            for start in range(0, resamples, size)
        ]
        low, high = np.quantile(np.concatenate(parts), [0.025, 0.975])
        return float(low), float(high)

    def _areas(self, times: Array) -> Array:
        """The area for each of ``(B, N)`` counts of the images; those that drew no positive are left out."""
        order = np.argsort(self.clean, kind="stable")
        ranked = self.clean[order]
        below = np.concatenate([np.zeros((len(times), 1)), np.cumsum(times[:, order], 1)], 1)
        left, right = (np.searchsorted(ranked, self.positive, side) for side in ("left", "right"))
        weight = times[:, self.image] * self.weight
        wins = (weight * (below[:, left] + below[:, right]) / 2).sum(1)
        total = weight.sum(1) * times.sum(1)
        return np.asarray(wins[total > 0] / total[total > 0], dtype=np.float64)

    def caught_at(self, rate: float) -> float | None:
        """Share of the positives above the threshold that at most ``rate`` of the clean scores exceed."""
        if not self.weight.sum() or not len(self.clean):
            return None
        caught = self.positive > threshold_at(self.clean, rate)
        return float(self.weight[caught].sum() / self.weight.sum())

    def curve(self) -> list[tuple[float, float]]:
        """The ROC curve's corners, (false-positive rate, true-positive rate), from (0, 0) to (1, 1)."""
        if not self.weight.sum() or not len(self.clean):
            return []
        cuts = np.unique(np.concatenate([self.clean, self.positive]))[::-1]
        corners = [
            (float(np.mean(self.clean >= cut)), float(self.weight[self.positive >= cut].sum() / self.weight.sum()))
            for cut in cuts
        ]
        return [(0.0, 0.0), *corners]


def threshold_at(clean: Array, rate: float) -> float:
    """The threshold that at most ``rate`` of the clean scores lie above; the rule by which a suite sets its own."""
    ranked = np.sort(clean)[::-1]
    return float(ranked[min(int(rate * len(ranked)), len(ranked) - 1)])
