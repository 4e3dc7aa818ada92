"""The space that an attack on a detector works in: all points of the ball, or those on whole grey levels."""

from __future__ import annotations

from torch import Tensor

from bench.contracts.levels import on_levels
from bench.contracts.target import Target

#: What is left of the excess over the threshold when most of it is gone.
_MOST = 0.5


def spaces(target: Target, x: Tensor) -> list[Target]:
    """The target in the spaces worth searching, the most promising first.

    Without a detector, and for data whose levels are not known, that is the target alone. Else both: all points of the
    ball, unless moving random ones to the levels of clean images takes away most of what the detector has against them.
    Asks for two scores per example.

    Args:
        x: the examples, ``(N, …)``.
    """
    if target.detection is None or not on_levels(x, target.info.input).all():
        return [target]
    rounded = target.on_levels(x)
    points = target.threat.sample(x, target.generator)
    excess, rounded_excess = (
        float(one.scores(points).nan_to_num(nan=0.0).median()) - target.detection.threshold for one in (target, rounded)
    )
    return [rounded, target] if excess > 0 and rounded_excess < _MOST * excess else [target, rounded]
