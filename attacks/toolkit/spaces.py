"""The space that an attack on a detector works in: all points of the ball, or those on whole grey levels."""

from __future__ import annotations

from torch import Tensor

from bench.contracts.levels import on_levels
from bench.contracts.target import Target


def spaces(target: Target, x: Tensor) -> list[Target]:
    """The target in the spaces worth searching, the most promising first.

    Without a detector, and for data whose levels are not known, that is the target alone. Else both: where the detector
    dislikes random points less once they are moved to the levels of clean images, these come first. Asks for two
    scores per example.

    Args:
        x: the examples, ``(N, …)``.
    """
    if not target.rejects or not on_levels(x, target.info.input).all():
        return [target]
    rounded = target.on_levels(x)
    points = target.threat.sample(x, target.generator)
    dislike, rounded_dislike = (one.scores(points).nan_to_num(nan=0.0).median() for one in (target, rounded))
    return [rounded, target] if rounded_dislike < dislike else [target, rounded]
