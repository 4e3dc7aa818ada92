"""What an attack that is shown a detector has to achieve: the classifier fooled *and* the detector satisfied.

Both halves are brought to scales on which they can be compared: the margin a = m/s_m, positive where the classifier is
fooled, and the slack b = (τ - d)/s_d, positive where the detector accepts. The joint objective min(a, b) is positive
only where both are. Which half a gradient has to serve follows from where it has lately been the smaller one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

#: How far apart, on the common scale, the halves have to be before a gradient serves the smaller one almost alone.
_SOFTNESS = 0.1
#: How much of an example's share is kept from one step to the next. Without that a climb serves the halves in turn,
#: each step taking back what the one before it has gained: on an adversarially trained digits network behind a second
#: network of its size the cascade then leaves 50 of 75 examples, with it 44.
_KEPT = 0.8
_TINY = 1e-12


@dataclass
class Detection:
    """The joint objective of a target with a detector.

    The scales are the median sizes of margin and slack at the points that an attack looks at first, mostly the clean
    inputs: so a score in nats and one in thousandths weigh the same, and nobody has to choose a weight.

    Attributes:
        threshold: τ, above which an input is rejected.
        shares: ``(n,)``, how much of a step has lately had to serve the classifier's half, for each example.
        scales: of margin and slack; None until the first points are seen.
        blind: how often in a row the score did not change with the input at all.
    """

    threshold: float
    shares: Tensor = field(default_factory=lambda: torch.empty(0))
    scales: tuple[float, float] | None = None
    blind: int = 0

    def accepts(self, scores: Tensor) -> Tensor:
        """Bool ``(M,)``: not rejected at ``scores (M,)``; a score that is not a number rejects nothing."""
        return ~(scores > self.threshold)

    def halves(self, margins: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Margin and slack ``(M,)`` each on the common scale, whose unit is the logarithm far from 0.

        Args:
            margins: ``(M,)``, positive where the classifier is fooled.
            scores: ``(M,)`` of the detector.
        """
        slack = _finite((self.threshold - scores).to(margins))
        if self.scales is None:
            self.scales = _typical(_finite(margins)), _typical(slack)
        return self.of_margin(margins), _common(slack, self.scales[1])

    def of_margin(self, margins: Tensor) -> Tensor:
        """The classifier's half ``(M,)`` alone, which the joint objective does not exceed; ∞ until scales are known."""
        if self.scales is None:
            return torch.full_like(margins, torch.inf)
        return _common(_finite(margins), self.scales[0])

    def joint(self, margins: Tensor, scores: Tensor) -> Tensor:
        """The joint objective ``(M,)``: positive only where the classifier is fooled and the detector accepts."""
        return torch.minimum(*self.halves(margins, scores))

    def share(self, margins: Tensor, scores: Tensor) -> Tensor:
        """How much of a step has to serve the classifier's half, ``(M,)`` in [0, 1]; the rest is the detector's.

        1 where the margin is the smaller half, 0 where the slack is, and in between where they are about the same: the
        gradient of a soft minimum of the two.
        """
        a, b = self.halves(margins, scores)
        return torch.sigmoid((b - a) / _SOFTNESS)

    def carried(self, examples: Tensor, share: Tensor) -> Tensor:
        """The share ``(M,)`` that a step follows: of what it was for the same example before, and what it is now.

        Args:
            examples: the example of the whole shard that each row belongs to, int64 ``(M,)`` on the CPU. Rows of one
                example, such as draws of a randomised defense, are averaged.
            share: of the rows now, ``(M,)``.
        """
        zeros = torch.zeros_like(self.shares)
        total = zeros.index_add(0, examples, share.to(zeros))
        rows = zeros.index_add(0, examples, torch.ones_like(zeros[examples]))
        now = total / rows.clamp_min(1)
        self.shares = torch.where(rows > 0, _KEPT * self.shares + (1 - _KEPT) * now, self.shares)
        return self.shares[examples].to(share)

    def blended(self, of_margin: Tensor, of_slack: Tensor, share: Tensor) -> Tensor:
        """The direction in which the joint objective rises, ``(M, …)``, as long as the classifier's gradient.

        Both gradients are brought to the same length first: a detector whose score saturates would else be drowned.

        Args:
            of_margin: gradient of the classifier's half, or of another loss in its place, ``(M, …)``.
            of_slack: gradient of the slack, ``(M, …)``: minus that of the score.
            share: of the classifier's half, ``(M,)``.
        """
        share = _wide(share, of_margin)
        length = _length(of_margin)
        mixed = share * of_margin / length.clamp_min(_TINY) + (1 - share) * of_slack / _length(of_slack).clamp_min(
            _TINY
        )
        mixed *= torch.where(length > 0, length, torch.ones_like(length))
        return mixed


def _finite(values: Tensor) -> Tensor:
    """What is not a number: a broken output counts as wrong, a broken score as accepted, each by a hair."""
    return values.nan_to_num(nan=_TINY, posinf=1e12, neginf=-1e12)


def _common(values: Tensor, scale: float) -> Tensor:
    values = values / scale
    return values.sign() * values.abs().log1p()


def _typical(values: Tensor) -> float:
    """The median size of ``values (M,)``; 1 where there is nothing to go by."""
    size = float(values.abs().median()) if len(values) else 0.0
    return size if size > _TINY else 1.0


def _length(grad: Tensor) -> Tensor:
    return _wide(grad.flatten(1).norm(dim=1), grad)


def _wide(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))
