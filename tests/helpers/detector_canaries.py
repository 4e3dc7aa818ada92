"""Detectors that anyone would invent, around an undefended classifier: each falls to an attack that knows it.

None of them declares anything that would help an attacker.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from lab import DIGITS, digits, digits_classifier
from torch import Tensor, nn

from bench.contracts.defense import BareModel, Defense, freeze


class _Guarded(BareModel):
    """The undefended digits classifier, with a detector."""

    def __init__(self) -> None:
        super().__init__(digits_classifier(), DIGITS)


class LowConfidence(_Guarded):
    """How unsure the classifier is."""

    def detect(self, x: Tensor) -> Tensor:
        return -self(x).softmax(1).amax(1)


class MedianDistance(_Guarded):
    """How far the image is from its median-filtered copy."""

    def detect(self, x: Tensor) -> Tensor:
        windows = F.unfold(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3)
        return (windows.median(1).values - x.flatten(1)).abs().mean(1)


class NearestNeighbours(_Guarded):
    """The mean distance to the five nearest training digits of the predicted class, in feature space."""

    def __init__(self) -> None:
        super().__init__()
        x, y, *_ = digits()
        self.known, self.labels = nn.Buffer(self.features(x)), nn.Buffer(y)

    def features(self, x: Tensor) -> Tensor:
        assert isinstance(self.classifier, nn.Sequential)
        found: Tensor = self.classifier[:-1](x)
        return found

    def detect(self, x: Tensor) -> Tensor:
        features = self.features(x)
        assert isinstance(self.classifier, nn.Sequential)
        label = self.classifier[-1](features).argmax(1)
        away = torch.cdist(features, self.known)
        away = away.masked_fill(self.labels[None] != label[:, None], torch.inf)
        return away.topk(5, dim=1, largest=False).values.mean(1)


class Disagreement(_Guarded):
    """How much the classifier and another network disagree."""

    def __init__(self) -> None:
        super().__init__()
        self.other = digits_classifier(24)

    def detect(self, x: Tensor) -> Tensor:
        difference: Tensor = self(x).softmax(1) - self.other(x).softmax(1)
        return difference.abs().sum(1)


class GridDistance(_Guarded):
    """How far the values are from the 17 grey levels of the digits."""

    def detect(self, x: Tensor) -> Tensor:
        return (16 * x - (16 * x).round()).abs().mean((1, 2, 3))


class CutScore(NearestNeighbours):
    """The nearest neighbours, cut from the graph."""

    @torch.no_grad()
    def detect(self, x: Tensor) -> Tensor:
        return super().detect(x)


class RandomScore(_Guarded):
    """A score drawn anew for every image and every query."""

    randomized = True

    def detect(self, x: Tensor) -> Tensor:
        return torch.rand(len(x))


CANARIES: dict[str, type[_Guarded]] = {
    "low confidence": LowConfidence,
    "median distance": MedianDistance,
    "nearest neighbours": NearestNeighbours,
    "disagreement": Disagreement,
    "grid distance": GridDistance,
    "cut score": CutScore,
    "random score": RandomScore,
}


@cache
def guarded(name: str) -> tuple[Defense, float]:
    """A canary and its threshold: the score that 5 % of 700 clean digits exceed."""
    defense = freeze(CANARIES[name]())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert defense.detect is not None
        scores = defense.detect(digits()[2][-700:])
    return defense, float(scores.sort(descending=True).values[35])
