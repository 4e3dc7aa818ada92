"""How an isolated defense is judged: by a server that has seen nothing yet, in a crowd, and a part of it twice.

The defense must not know what is asked for which purpose. So judged inputs go in among noisy copies of themselves, on
and off the grey levels, all shuffled, in batches no larger than they came in; a gradient is taken of half the answers,
as attacks do; the judge's server is a fresh one, without memory of the attack; and some of the rows are asked once
more, in another order, of the server that was attacked. An honest defense answers both alike.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.contracts.counting import Counts
from bench.contracts.defense import Defense
from bench.contracts.levels import Levels
from bench.contracts.seeding import seeded
from bench.contracts.threat import ThreatModel
from bench.isolation.remote import RemoteDefense
from bench.judging.judge import Judged, Judging, judge, per_row
from bench.storing.records import AskedAgain

#: Rows of a shard that are asked again, and draws of each of a randomised defense.
ROWS, DRAWS = 32, 20
#: By what share of the largest logit two passes of a deterministic defense may differ in batches of another make-up.
_TOLERANCE = 1e-3


class Crowd(Defense):
    """A defense that is asked every batch among noisy copies of it, shuffled, in two passes.

    Args:
        defense: who is asked; threat: gives the copies their noise. Both permutation and noise come from the global
            generator, which the judge seeds.
        gradients: whether a gradient is taken of every answer; else of every other one, by lot.
    """

    trainable = False

    def __init__(self, defense: Defense, threat: ThreatModel, gradients: bool = False) -> None:
        super().__init__(defense.data)
        self.asked, self.threat, self.gradients = defense, threat, gradients
        if defense.detect is not None:
            score = defense.detect
            self.detect = lambda x: self._among_copies(score, x)

    def forward(self, x: Tensor) -> Tensor:
        return self._among_copies(self.asked, x)

    def _among_copies(self, question: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        n = len(x)
        lot = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        order = torch.randperm(2 * n).to(x.device)
        copies = self.threat.sample(x, lot)
        if self.data.input.levels is not None:
            on_levels = Levels(self.data.input, self.threat, x).snapped(copies, None)
            copies = torch.where(per_row(torch.rand(n, generator=lot) < 0.5, x), on_levels, copies)
        crowd = torch.cat([x, copies])[order]
        answers = torch.cat([self._asked(question, part, lot) for part in crowd.split(n)])
        return answers[order.argsort()[:n]]

    @torch.enable_grad()
    def _with_gradient(
        self, question: Callable[[Tensor], Tensor], part: Tensor, by_margin: bool, against: int
    ) -> Tensor:
        """Ask as an attack does: the question, then the way back from a loss, margin or cross-entropy.

        Against the first or the second class of the answer: against the label it would give that away.
        """
        out = question(part.clone().requires_grad_())
        told = out.detach()
        if out.requires_grad:
            back = torch.ones_like(told)
            if told.ndim == 2 and told.shape[1] > 1:
                classes = told.nan_to_num().topk(2, dim=1).indices
                one, other = (F.one_hot(classes[:, k], told.shape[1]).to(told) for k in (against, 1 - against))
                back = other - one if by_margin else told.softmax(1).nan_to_num() - one
            with contextlib.suppress(RuntimeError):  # the way back of some defense fails; attacks live with that too
                torch.autograd.backward(out, back)
        return told

    def _asked(self, question: Callable[[Tensor], Tensor], part: Tensor, lot: torch.Generator) -> Tensor:
        asks, by_margin, against = (bool(torch.randint(2, (), generator=lot)) for _ in range(3))
        if not (asks or self.gradients):
            return question(part)
        return self._with_gradient(question, part, by_margin, int(against))


def in_a_crowd(defense: Defense, threat: ThreatModel, gradients: bool = False) -> Defense:
    """A defense in a server in such a crowd; one in this process as it is."""
    return Crowd(defense, threat, gradients) if isinstance(defense, RemoteDefense) else defense


def judge_apart(
    fresh: RemoteDefense,
    attacked: Defense,
    x: Tensor,
    y: Tensor,
    ids: list[str],
    x_adv: Tensor,
    counts: Counts,
    how: Judging,
    *,
    randomized: bool,
) -> tuple[Judged, AskedAgain]:
    """Judge with a fresh server, and compare it with the one that was attacked; see :func:`bench.judging.judge.judge`.

    Where the two differ both judge everything, and of each row what the defense survives less counts.
    """
    first, second = in_a_crowd(fresh, how.threat), in_a_crowd(attacked, how.threat, gradients=True)
    judged = judge(first, x, y, ids, x_adv, counts, how)
    with seeded(*how.stream, "again"):
        again = ask_again(first, second, judged.points, y, randomized=randomized, threshold=how.threshold)
    if again.differing:
        judged = worse_of(judged, judge(second, x, y, ids, x_adv, counts, how))
    return judged, again


@torch.no_grad()
def ask_again(
    one: Defense, other: Defense, x: Tensor, y: Tensor, *, randomized: bool, threshold: float | None
) -> AskedAgain:
    """Compare two servers of one defense on some of the judged inputs ``x (N, …)``, each in an order of its own.

    A row of a deterministic defense differs where a logit or a score does, beyond float noise; of a randomised one
    where the shares of draws that are right and accepted do, beyond luck (Fisher's exact test).
    """
    rows = torch.randperm(len(x))[:ROWS].to(x.device)
    x, y = x[rows], y[rows].cpu()
    if randomized:
        hits = [_hits(who, x, y, threshold) for who in (one, other)]
        return AskedAgain(rows=len(x), differing=sum(map(_is_no_luck, *hits, [len(x)] * len(x))))
    differing = torch.zeros(len(x), dtype=torch.bool)
    first, second = (_answers(who, x) for who in (one, other))
    for a, b in zip(first, second, strict=True):
        differing |= ((a - b).abs() > _TOLERANCE * (1 + a.abs().max())).any(1) | (a.isfinite() != b.isfinite()).any(1)
    return AskedAgain(rows=len(x), differing=int(differing.sum()))


def _answers(defense: Defense, x: Tensor) -> list[Tensor]:
    """Logits ``(N, K)`` and, of a detector, scores ``(N, 1)``, asked in an order of their own."""
    order = torch.randperm(len(x)).to(x.device)
    questions: list[Callable[[Tensor], Tensor]] = [defense] if defense.detect is None else [defense, defense.detect]
    found = [question(x[order])[order.argsort()].double().cpu() for question in questions]
    return [values.nan_to_num(nan=torch.inf) if values.ndim == 2 else values[:, None] for values in found]


def _hits(defense: Defense, x: Tensor, y: Tensor, threshold: float | None) -> list[int]:
    """Of :data:`DRAWS` draws of each row, how many are right and accepted."""
    hits = torch.zeros(len(x), dtype=torch.int64)
    for _ in range(DRAWS):
        order = torch.randperm(len(x))
        batch = x[order.to(x.device)]
        right = defense(batch).argmax(1).cpu() == y[order]
        if threshold is not None and defense.detect is not None:
            right &= ~(defense.detect(batch).cpu() > threshold)
        hits[order] += right
    return [int(number) for number in hits]


def _is_no_luck(a: int, b: int, tests: int) -> bool:
    from scipy.stats import fisher_exact

    return bool(fisher_exact([[a, DRAWS - a], [b, DRAWS - b]]).pvalue < AskedAgain.LUCK / tests)


def worse_of(one: Judged, other: Judged) -> Judged:
    """Row by row what survives less."""
    takes = torch.tensor([b.report_robust < a.report_robust for a, b in zip(one.rows, other.rows, strict=True)])
    rows = [b if take else a for a, b, take in zip(one.rows, other.rows, takes.tolist(), strict=True)]
    points = torch.where(per_row(takes, one.points), other.points, one.points)
    if one.x_adv.shape != other.x_adv.shape:
        return Judged(rows, one.x_adv, points)
    return Judged(rows, torch.where(per_row(takes, one.x_adv), other.x_adv, one.x_adv), points)
