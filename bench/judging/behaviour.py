"""Whether answers depend on anything but the input: on luck, on the rest of the batch, on what was asked before."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.contracts.defense import Defense
from bench.contracts.errors import InputError
from bench.contracts.seeding import seeded

#: Passes that are compared to find randomness.
PASSES = 5
#: What two passes of one score may differ by through rounding alone, as a share of the largest.
ROUNDING = 1e-5
#: What logits may differ by in another batch, and scores in shares of their spread, a logarithm of small numbers among
#: them: far above float noise, far below a batch statistic's effect.
_LOGITS, _SCORES = 1e-3, 0.05
#: Beyond it losses overflow, and with them their gradients.
LARGEST_LOGIT = 1e15
#: Rows that are asked about alone.
_SINGLES = 4


@dataclass(frozen=True)
class Answers:
    """What a defense says of some inputs: logits ``(N, K)``, and scores ``(N,)`` where it has a detector."""

    logits: Tensor
    scores: Tensor | None

    @classmethod
    @torch.no_grad()
    def of(cls, defense: Defense, x: Tensor) -> Answers:
        return cls(defense(x.clone()), None if defense.detect is None else defense.detect(x.clone()))

    def at(self, rows: Tensor | slice) -> Answers:
        return Answers(self.logits[rows], None if self.scores is None else self.scores[rows])

    def differ(self, other: Answers) -> bool:
        """Whether two answers to the same inputs differ by more than float noise."""
        tolerance = _LOGITS * (1 + self.logits.abs().max())
        if not (self.logits - other.logits).abs().max() <= tolerance:  # so that NaN differs
            return True
        if self.scores is None or other.scores is None:
            return False
        scores = self.scores.double()
        allowed = _SCORES * scores.std(correction=0) + 10 * ROUNDING * scores.abs().max()
        return not (scores - other.scores.double()).abs().max() <= allowed


def undecided(logits: Tensor) -> Tensor:
    """Bool ``(N,)``: whether the two largest logits are so near that float noise may decide between them."""
    first, second = logits.topk(2, dim=1).values.T
    near: Tensor = first - second <= 2 * _LOGITS * (1 + logits.abs().amax(1))
    return near


def joined(parts: list[Answers]) -> Answers:
    """Answers to several batches as those to one."""
    scores = [part.scores for part in parts if part.scores is not None]
    return Answers(torch.cat([part.logits for part in parts]), torch.cat(scores) if scores else None)


@torch.no_grad()
def is_random(defense: Defense, x: Tensor, passes: int = PASSES) -> bool:
    """Whether unit-normalised logits of the same batch differ by more than 1e-4 over some passes, or the detector's
    scores by more than that share of their spread over the batch."""
    draws = torch.stack([F.normalize(defense(x), dim=1) for _ in range(passes)])
    if (draws - draws[0]).norm(dim=2).max() > 1e-4:
        return True
    if defense.detect is None:
        return False
    scores = torch.stack([defense.detect(x) for _ in range(passes)]).double()
    return bool((scores - scores[0]).abs().max() > 1e-4 * scores[0].std(correction=0) + ROUNDING * scores.abs().max())


@torch.no_grad()
def depends_on_batch(defense: Defense, x: Tensor) -> bool:
    """Whether the answer to an input changes when its batch is permuted or split, or when it is asked alone."""
    order = torch.arange(len(x), device=x.device).flip(0)
    whole = Answers.of(defense, x)
    if whole.differ(Answers.of(defense, x[order]).at(order)):
        return True
    if whole.differ(joined([Answers.of(defense, part) for part in x.split(max(1, len(x) // 2))])):
        return True
    alone = joined([Answers.of(defense, x[i : i + 1]) for i in range(min(_SINGLES, len(x)))])
    return whole.at(slice(_SINGLES)).differ(alone)


def depends_on_the_past(defense: Defense, x: Tensor, moved: Tensor, *seed: object) -> bool | None:
    """Whether answers to points near ``x`` change once x itself has been asked, neither of them having been before.

    Every pass draws on the same random stream, so that a defense may be randomised. None where it does not draw from
    the global generators, so that this cannot be told.
    """

    def ask(points: Tensor) -> Answers:
        with seeded(*seed):
            return Answers.of(defense, points)

    first = ask(moved)
    if first.differ(ask(moved)):
        return None if defense.randomized else True
    ask(x)
    return first.differ(ask(moved))


def check_size(logits: Tensor) -> None:
    """Raise :class:`InputError` where logits are so large that their differences cannot be computed with."""
    largest = float(logits.abs().max())
    if largest > LARGEST_LOGIT:
        raise InputError(
            f"forward: logits reach {largest:.2g}, at most {LARGEST_LOGIT:g} is allowed: losses and their gradients "
            "overflow; scale them down"
        )
