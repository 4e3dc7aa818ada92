"""What becomes of stored adversarial inputs once they are saved as files: rounded to whole grey levels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import Tensor

from bench.contracts.inputs import InputSpec
from bench.contracts.levels import Levels
from bench.contracts.threat import Lp
from bench.storing.records import Row

#: Grey levels of an image file where the data do not say: 8 bits.
EIGHT_BITS = 256


@dataclass(frozen=True)
class Rounding:
    """Rows judged once more with x_adv rounded.

    Attributes:
        rows: that were; survive: of these, how many the defense then survives more, so that the attack needed what no
            file holds; fall: how many less.
    """

    rows: int = 0
    survive: int = 0
    fall: int = 0

    def __add__(self, other: Rounding) -> Rounding:
        return Rounding(self.rows + other.rows, self.survive + other.survive, self.fall + other.fall)

    @property
    def changed(self) -> int:
        return self.survive + self.fall

    def of(self, pairs: Iterable[tuple[Row, Row]]) -> Rounding:
        """With these rows added: each as it was judged, and rounded."""
        differences = [rounded.report_robust - row.report_robust for row, rounded in pairs]
        return self + Rounding(len(differences), sum(d > 0 for d in differences), sum(d < 0 for d in differences))


def levels_of(spec: InputSpec) -> int | None:
    """The levels that inputs are rounded to: those of the data's files, else 256 of an image; None of anything else."""
    return EIGHT_BITS if spec.levels is None and spec.kind == "image" else spec.levels


def rounded(x_adv: Tensor, x: Tensor, spec: InputSpec, threat: Lp) -> Tensor | None:
    """``x_adv (N, …)`` on whole levels in the ball around ``x``; None where there are none, or the shapes differ."""
    levels = levels_of(spec)
    if levels is None or x_adv.shape != x.shape:
        return None
    return Levels(replace(spec, levels=levels), threat, x).snapped(x_adv, None)
