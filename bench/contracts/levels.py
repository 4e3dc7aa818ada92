"""Whole grey levels: the points of the ball that a file of the data set could hold.

Clean images lie on the levels that their files have, 256 of them in most, 17 in the digits. A detector may look at
nothing else; an attack that stays on the levels gives it nothing to see.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.contracts.inputs import InputSpec
from bench.contracts.threat import Lp, ThreatModel

#: In shares of a level, how far from one a value may lie that was computed in floating point.
_ROUNDING = 1e-3


@dataclass(frozen=True)
class Levels:
    """The whole levels in the ball around each example.

    Attributes:
        spec: what the inputs look like; ``spec.levels`` is not None.
        threat: what the points have to stay in.
        centres: the examples, ``(N, …)``.
    """

    spec: InputSpec
    threat: ThreatModel
    centres: Tensor

    def at(self, index: Tensor) -> Levels:
        """Those around some of the examples."""
        return Levels(self.spec, self.threat, self.centres[index])

    def snapped(self, x: Tensor, index: Tensor | None) -> Tensor:
        """The points ``x (M, …)`` moved to whole levels, for the examples ``index`` (None: all in order).

        In linf each value goes to the nearest level of the ball. In other norms it goes to the next level on the way to
        the example, so that no perturbation grows. Where there is no level (an example between two of them, a ball
        smaller than their distance) a value stays.
        """
        assert self.spec.levels is not None
        last, width = self.spec.levels - 1, self.spec.high - self.spec.low
        centre = self.centres if index is None else self.centres[index.to(self.centres.device)]
        here, middle = level_of(x, self.spec), level_of(centre, self.spec)
        if isinstance(self.threat, Lp) and self.threat.norm == "linf":
            reach = last * self.threat.eps / width
            slack = 0.5 * last * self.threat.tolerance / width  # less than the judge allows
            lowest = (middle - reach - slack).ceil().clamp_min(0)
            highest = (middle + reach + slack).floor().clamp_max(last)
            whole = torch.minimum(torch.maximum(here.round(), lowest), highest)
            whole = torch.where(lowest > highest, here, whole)
        else:
            steps = here - middle
            near = (steps - steps.round()).abs() < _ROUNDING
            whole = middle + torch.where(near, steps.round(), steps.trunc())
        return value_at(whole, self.spec)


def level_of(x: Tensor, spec: InputSpec) -> Tensor:
    """The grey level of each value, 0 to ``spec.levels - 1``, a fraction between two of them."""
    assert spec.levels is not None
    return (spec.levels - 1) * (x - spec.low) / (spec.high - spec.low)


def value_at(level: Tensor, spec: InputSpec) -> Tensor:
    """The value at a grey level, the inverse of :func:`level_of` up to rounding."""
    assert spec.levels is not None
    return spec.low + level / (spec.levels - 1) * (spec.high - spec.low)


def on_levels(x: Tensor, spec: InputSpec) -> Tensor:
    """Bool ``(N,)``: whether all values of each input are whole levels, up to rounding; False where there are none."""
    if spec.levels is None:
        return torch.zeros(len(x), dtype=torch.bool, device=x.device)
    here = level_of(x, spec)
    return ((here - here.round()).abs() < _ROUNDING).flatten(1).all(1)
