"""A pool of the best few points of every example, and races among them on more and more draws."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from attacks.toolkit.selection import ranked_classes, tried
from bench.contracts.target import Target

#: Standard errors within which a point of the pool may still be as good as the leading one.
_STILL = 1.5
#: Weight of how nearly a point fools beside how often.
_NEARLY = 1e-3


class Pool:
    """Up to ``size`` points of each example, with how often each has fooled the defense.

    On a randomised defense a point that looks best on a few draws was partly lucky, the more so the more points are
    compared. Points are therefore kept together with all their draws, and :meth:`race` gives further draws to those
    that are not clearly behind. On a deterministic defense one look decides.

    Args:
        x: the examples, ``(N, …)``; y: int64 ``(N,)``. The clean inputs are the first points of the pool.
        size: points K of each example.
        draws: of a new point.
    """

    def __init__(self, target: Target, x: Tensor, y: Tensor, size: int, draws: int) -> None:
        self.target, self.x, self.y = target, x, y
        self.draws = draws if target.randomized else 1
        #: ``(K, N, …)``: slot k of example n.
        self.points = x.repeat(size, *[1] * x.ndim)
        #: Of each slot, float64 ``(K, N)``: the share of draws that it fooled, its mean merit, and the number of draws.
        self.share = torch.zeros(size, len(x), dtype=torch.float64, device=x.device)
        self.merit = torch.full_like(self.share, -torch.inf)
        self.seen = torch.zeros_like(self.share)
        self.everyone = torch.arange(len(x), device=x.device)
        self.offer(x, self.everyone)

    @property
    def key(self) -> Tensor:
        """What slots are ordered by, ``(K, N)``: how often they fool, and among equals how nearly."""
        return _key(self.share, self.merit)

    @property
    def leading(self) -> Tensor:
        """The best slot of each example, ``(N,)``."""
        return self.key.argmax(0)

    @property
    def best(self) -> Tensor:
        """The best point of each example, ``(N, …)``."""
        return self.points[self.leading, self.everyone]

    @property
    def fallen(self) -> Tensor:
        """How often the best point of each example fools, ``(N,)``."""
        return self.share[self.leading, self.everyone]

    @property
    def standing(self) -> Tensor:
        """The examples whose best point does not always fool, the ones with most to gain from a change first."""
        share, key = self.fallen, self.key.amax(0)
        gain = share * (1 - share) + (key - share)
        index = self.everyone[share < 1]
        return index[gain[index].argsort(descending=True, stable=True)]

    @cached_property
    def ranked(self) -> Tensor:
        """The classes other than y in the order in which the defense ranks them at x, int64 ``(K-1, N)``."""
        logits = self.target.logits(self.x, draws=self.draws)
        return ranked_classes(logits, self.y, self.target.num_classes - 1)

    def other(self, index: Tensor) -> Tensor:
        """A random slot of each of the examples ``index``, ``(M, …)``."""
        slot = (self.target.rand(len(index), like=self.x) * len(self.points)).long().clamp_max(len(self.points) - 1)
        return self.points[slot, index]

    def offer(self, points: Tensor, index: Tensor) -> None:
        """Try ``points (M, …)`` for the examples ``index (M,)``; each takes the place of the worst if it is better."""
        if not len(index):
            return
        share, merit = (v.double() for v in tried(self.target, points, self.y[index], index, self.draws))
        known = (self.points[:, index] == points).flatten(2).all(2) & (self.seen[:, index] > 0)
        last = self.key[:, index].argmin(0)
        better = (_key(share, merit) > self.key[last, index]) & ~known.any(0)
        slot, rows = last[better], index[better]
        self.points[slot, rows] = points[better]
        self.share[slot, rows], self.merit[slot, rows] = share[better], merit[better]
        self.seen[slot, rows] = self.draws

    def race(self, draws: int, among: int) -> None:
        """Draw on, up to ``draws`` each, where the leading point of an example has others close behind it.

        Args:
            among: the leading point and so many less one behind it.
        """
        if not self.target.randomized:
            return
        top, lead = self.leading, self.fallen
        seen = self.seen[top, self.everyone]
        # Of a share of 0 or 1 on n draws the error is not 0: two draws of either outcome are added.
        smooth, of_top = (self.share * self.seen + 1) / (self.seen + 2), (lead * seen + 1) / (seen + 2)
        error = (smooth * (1 - smooth) / self.seen.clamp_min(1) + of_top * (1 - of_top) / seen).sqrt()
        place = self.key.argsort(0, descending=True).argsort(0)
        close = (self.share >= lead - _STILL * error) & (self.seen > 0) & (lead > 0) & (place < among)
        close &= close.sum(0) > 1
        wanted = torch.where(close, draws - self.seen, 0).clamp_min(0)
        for more in wanted.unique().tolist():
            if more > 0:
                slot, rows = (wanted == more).nonzero(as_tuple=True)
                self._look_again(slot, rows, int(more))

    def _look_again(self, slot: Tensor, index: Tensor, draws: int) -> None:
        found = tried(self.target, self.points[slot, index], self.y[index], index, draws)
        before = self.seen[slot, index]
        for kept, new in zip((self.share, self.merit), found, strict=True):
            kept[slot, index] = (kept[slot, index] * before + new.double() * draws) / (before + draws)
        self.seen[slot, index] = before + draws

    def redrawn(self, index: Tensor, share: float) -> Tensor:
        """The best points of the examples ``index`` with ``share`` of their values drawn anew, ``(M, …)``."""
        fresh = self.target.threat.sample(self.x, self.target.generator)
        chosen = self.target.rand(*self.x.shape, like=self.x) < share
        return self.target.threat.project_(torch.where(chosen, fresh, self.best), self.x)[index]


def _key(share: Tensor, merit: Tensor) -> Tensor:
    """``share`` plus a little, the more the larger ``merit``, whatever its scale."""
    finite = merit.nan_to_num(nan=0.0, posinf=1e300, neginf=-1e300)
    return share + _NEARLY * finite / (1 + finite.abs())
