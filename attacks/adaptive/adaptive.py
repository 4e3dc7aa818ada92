"""The attack that adapts itself to a defense: ``adaptive``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated

from annotated_types import Ge
from torch import Tensor

from attacks.adaptive.candidates import Candidate, searches
from attacks.adaptive.search import read, search
from attacks.toolkit.local_search import local_search
from attacks.toolkit.pool import Pool
from bench.contracts.attack import PrepareContext, attack
from bench.contracts.target import Target

#: Of the budget: to the first turns; the rest goes where most is to be gained. Of this the share of the last race, on a
#: randomised defense.
_FIRST, _RACE = 0.5, 0.2
#: Fewer passes are one climb, by the best combination: halves of so few would not converge.
_SEVERAL = 30
#: Points kept of each example.
_POOL = 6
#: Of the standing examples, how many each round of the rest is about.
_ROUNDS = (1 / 2, 1 / 2, 1 / 3, 1 / 3, 1 / 4, 1 / 4, 1 / 6, 1 / 6, 1 / 8, 1 / 8)
#: No example takes part in a round with fewer passes than this times the draws on which a point is tried.
_LEAST = 4
#: Share of the values of a best point that are drawn anew before it is climbed from.
_REDRAWN = 0.3
#: Draws that proposals of local search are compared on.
_COMMON = 8


def _prepare(context: PrepareContext, *, passes: int, **_: object) -> dict[str, Tensor]:
    return search(context, passes)


@attack(
    "adaptive",
    version=5,
    knowledge="gradient",
    norms=("linf", "l2"),
    targeted=True,
    paper="this project; successive halving: Jamieson & Talwalkar 2016, Non-stochastic Best Arm Identification and "
    "Hyperparameter Optimization",
    url="https://arxiv.org/abs/1502.07943",
    adapts=True,
    prepare=_prepare,
)
def adaptive(
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    passes: Annotated[int, Ge(10)] = 1000,
    rescore: Annotated[int, Ge(1)] = 10,
) -> Tensor:
    """Find on validation images what suits the defense; then spend the budget with it, most where most is to be gained.

    Before it meets any example it tries gradient estimators (exact, identity, each declared approximation and variant,
    the guide, the classifier alone, finite differences), losses (margins of logits and of probabilities, -p_y,
    cross-entropy, log odds, DLR), draws against steps and how draws are averaged (EOT, or those that fall together),
    step rules (PGD, momentum, Adam, conjugate directions, APGD), restarts and climbs towards single classes, one choice
    after the other for the two best estimators, by successive halving on 40 validation images; and Square, which needs
    no gradient. An estimator that Square beats is not refined. Square and the best climbs, these with more draws too,
    are tried with a quarter of the budget each, and the three are kept that leave least together
    (``attacks.adaptive.search``). What it found, and how the others did, is a note of the result.

    Then, on the examples, with a pool of the six best points of each: (1) these three from random starts, for half of
    the budget, the best one longest (of fewer than 30 passes it gets all). (2) Ten rounds for the half of the examples
    that have most to gain, later for fewer, or for as many as can have ``passes`` each in a round, each round by what
    has gained most per pass so far: a climb with one of the combinations, from the best point with three tenths of its
    values drawn anew or from a random start, Square, or an annealed random search on common draws
    (``attacks.toolkit.local_search``). (3) A race among the points of each example on up to eight times the draws;
    shorter ones follow each round. On a deterministic defense an example is finished when it is fooled, and the others
    share what it has left, up to some ten times ``passes`` each.

    Args:
        target: gradient knowledge.
        x: ``(N, …)`` in the box; y: int64 ``(N,)``.
        passes: passes of the defense that an example gets on average, of which a gradient is one and each comparison.
        rescore: draws on which a new point for a randomised defense is tried.

    Returns:
        x_adv, shaped like x.
    """
    candidates, says = read(target.prepared)
    target.counts.notes.add(says)
    pool = Pool(target, x, y, _POOL, rescore)
    purse = _Purse(target, len(x), passes)
    first = _FIRST
    if passes < _SEVERAL:  # but for those that look at the last point and offer it
        candidates, first = candidates[:1], 1 - 2 / passes
    for candidate, share in zip(candidates, budgets(first, len(candidates)), strict=True):
        index = pool.standing
        if len(index):
            candidate.run(pool, index, purse.each(share, len(index)))
    purse.race(pool, 4 * rescore, among=4)
    movers = _Movers(pool, candidates)
    race = _RACE if target.randomized else 0.0
    for number, near in enumerate(_ROUNDS):
        index = pool.standing
        share = (purse.left - race) / (len(_ROUNDS) - number)
        # Where few are left, all of them get what an example can get in a round.
        wanted = max(1, round(near * len(index)), purse.affords(share, passes))
        index = index[: min(wanted, purse.affords(share, _LEAST * pool.draws))]
        if not len(index):
            break
        movers.move(index, purse.each(share, len(index)))
        purse.race(pool, 2 * rescore, among=3)
    purse.race(pool, 4 * rescore, among=3)
    purse.race(pool, 8 * rescore, among=2)
    if movers.best:
        target.counts.notes.add(f"after the first climbs, most was gained {movers.best}")
    return pool.best


class _Purse:
    """What may be spent."""

    def __init__(self, target: Target, examples: int, passes: int) -> None:
        self.target, self.total, self.passes = target, passes * examples, passes
        self.before = int(target.counts.forward.sum())

    @property
    def left(self) -> float:
        """The share of the whole that is left."""
        return 1 - (int(self.target.counts.forward.sum()) - self.before) / self.total

    def each(self, share: float, examples: int) -> int:
        """``share`` of the whole, in passes for each of so many examples: at most what one gets on average."""
        return max(2, min(self.passes, round(share * self.total / examples)))

    def affords(self, share: float, least: int) -> int:
        """How many examples get ``least`` passes each from ``share`` of the whole; none of less than nothing."""
        return max(0, int(share * self.total / least))

    def race(self, pool: Pool, draws: int, among: int) -> None:
        """A race, if what is left pays for it in half of the examples; in the others one point is clearly ahead."""
        if self.left * self.passes > among * draws / 2:
            pool.race(draws, among)


class _Movers:
    """Ways to better the points of a pool, and what each has gained per pass."""

    def __init__(self, pool: Pool, candidates: list[Candidate]) -> None:
        self.pool, self.turn = pool, 0
        self.ways: list[tuple[str, Callable[[Tensor, int], None]]] = [("by local search", self._search)]
        climbs = [candidate for candidate in candidates if candidate.by_gradients]
        self.ways += [(f"from the best points by {candidate}", partial(self._again, candidate)) for candidate in climbs]
        others = [candidate for candidate in candidates if not candidate.by_gradients] or searches(1)
        anew = climbs[:1] + others[:1]
        self.ways += [(f"from random points by {candidate}", partial(self._anew, candidate)) for candidate in anew]
        #: What each has gained, and the passes that it took, the latest turns counting most.
        self.gained, self.taken = [0.0] * len(self.ways), [0] * len(self.ways)

    def move(self, index: Tensor, passes: int) -> None:
        """Give ``passes`` for each of the examples ``index`` to the way that has paid best, or was not tried yet."""
        number = self.taken.index(0) if 0 in self.taken else self._best
        before = self.pool.key[:, index].amax(0)
        self.ways[number][1](index, passes)
        self.turn += 1
        self.gained[number] = 0.5 * self.gained[number] + float((self.pool.key[:, index].amax(0) - before).sum())
        self.taken[number] = round(0.5 * self.taken[number]) + passes * len(index)

    @property
    def rates(self) -> list[float]:
        """What each has gained per pass."""
        return [gained / max(1, taken) for gained, taken in zip(self.gained, self.taken, strict=True)]

    @property
    def best(self) -> str:
        """What has gained most per pass; empty where nothing has gained."""
        return self.ways[self._best][0] if max(self.rates) > 0 else ""

    @property
    def _best(self) -> int:
        """The way that has gained most per pass; of those that have gained nothing the one that was tried least."""
        return max(range(len(self.ways)), key=lambda number: (self.rates[number], -self.taken[number]))

    def _search(self, index: Tensor, passes: int) -> None:
        local_search(self.pool, index, passes, _COMMON)

    def _again(self, candidate: Candidate, index: Tensor, passes: int) -> None:
        start = self.pool.redrawn(index, _REDRAWN)
        candidate.run(self.pool, index, passes, start, self.turn)

    def _anew(self, candidate: Candidate, index: Tensor, passes: int) -> None:
        candidate.run(self.pool, index, passes, turn=self.turn)


def budgets(whole: float, parts: int) -> list[float]:
    """``whole`` in so many parts, each half of the one before."""
    share = whole / (2 - 2 ** (1 - parts))
    return [share / 2**part for part in range(parts)]
