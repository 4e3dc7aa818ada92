"""What an attack that is shown a detector has to achieve: the classifier fooled *and* the detector satisfied.

Both halves are brought to scales on which they can be compared: the margin a = m/s_m, positive where the classifier is
fooled, and the slack b = (τ - d)/s_d, positive where the detector accepts. The joint objective min(a, b) is positive
only where both are. It says which of two points is nearer to success. The steps that lead there are those of selective
PGD with a memory: for the classifier until it is fooled, for the detector then, each half weighed by how often it has
lately had to be served.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: How far apart, on the common scale, the halves have to be before a gradient serves the smaller one almost alone.
_SOFTNESS = 0.1
#: How much of an example's share is kept from one step to the next. Without that a climb serves the halves in turn,
#: each step taking back what the one before it has gained: on digits behind an ensemble of four detectors two runs of
#: PGD of 100 steps then leave 13 of 40 examples, with it 1.
_KEPT = 0.8
#: How much of the slack's direction is kept from one step to the next. A score that is the largest of several, of
#: members or of squeezers, has the gradient of one alone, and a step for one gives the others a free hand: on the
#: same digits three climbs of 25 steps leave 5 of 40 without that, with it 2.
_REMEMBERED = 0.7
_TINY = 1e-12


@dataclass
class Detection:
    """The joint objective of a target with a detector.

    The scales are the median sizes of margin and slack at the points that an attack looks at first, mostly the clean
    inputs: so a score in nats and one in thousandths weigh the same, and nobody has to choose a weight.

    Attributes:
        threshold: τ, above which an input is rejected.
        shares: ``(n,)``, how much of a step has lately had to serve the classifier's half, for each example.
        slopes: ``(n, …)`` on the inputs' device, the sum of the slack's directions so far, older ones fading, for each
            example; None until the first gradients are seen.
        scales: of margin and slack; None until the first points are seen.
        blind: how often in a row the score did not change with the input at all.
    """

    threshold: float
    shares: Tensor
    slopes: Tensor | None = None
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

        1 where the classifier is not fooled, 0 where it is and the detector rejects, as in selective PGD (Bryniarski et
        al. 2021). How far the two are from success is not compared, for that would hang on their scales: near clean
        inputs a detector has little to say, and a slack in units of what it is there outweighs every margin. Where both
        are achieved, it is the gradient of a soft minimum of the two.
        """
        a, b = self.halves(margins, scores)
        both = torch.sigmoid((b - a) / _SOFTNESS)
        return torch.where(a <= 0, torch.ones_like(both), torch.where(b < 0, torch.zeros_like(both), both))

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

    def remembered(self, examples: Tensor, of_slack: Tensor) -> Tensor:
        """The direction that a step for the slack follows, ``(M, …)``: that of now, and less and less those before.

        Args:
            examples: as in :meth:`carried`; rows of one example are averaged.
            of_slack: gradient of the slack, ``(M, …)``; rows of zero have not been asked for, or say nothing.
        """
        where, length = examples.to(of_slack.device), _length(of_slack)
        if self.slopes is None:
            self.slopes = torch.zeros(len(self.shares), *of_slack.shape[1:]).to(of_slack)
        now = torch.zeros_like(self.slopes).index_add(0, where, of_slack / length.clamp_min(_TINY))
        rows = torch.zeros_like(self.slopes.flatten(1)[:, 0]).index_add(0, where, (length > 0).flatten().to(of_slack))
        now /= _wide(rows.clamp_min(1), now)
        self.slopes = torch.where(_wide(rows > 0, now), _REMEMBERED * self.slopes + now, self.slopes)
        return self.slopes[where]

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
