"""Which attack suits a defense: a search over ways to attack it on validation images.

One choice after the other: estimators, losses, draws, step rules, then restarts and classes; each by successive halving
(Jamieson & Talwalkar 2016): all candidates get a small budget, the better half twice as much, and so on. A candidate is
judged by how often the points that it returns fool the defense on fresh draws. Square, which needs no gradient, takes
part in the first choice, and no estimator that it beats there is refined. In the end it and the best climbs, these
with more draws too, are tried with a budget like that of the attack, and those are kept that leave least together.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from attacks.adaptive.candidates import Candidate, estimators_for, searches, written
from attacks.toolkit.ascent import RULES
from attacks.toolkit.pool import Pool
from bench.contracts.attack import PrepareContext
from bench.contracts.defense import Defense
from bench.contracts.errors import InputError, NotApplicable
from bench.contracts.reporting import report
from bench.contracts.seeding import seeded
from bench.contracts.target import Target

#: Validation images that candidates are tried on; draws that compare what they return, on a randomised defense.
_IMAGES, _DRAWS = 40, 5
#: Draws on which a candidate is judged in the end.
_FINAL_DRAWS = 20
#: The first round gets such a share of the passes per example of the attack, and no less or more passes than this.
_SHARE, _LEAST, _MOST = 1 / 40, 8, 64
#: The last round's share: what a search without gradients finds it finds late.
_LAST = 1 / 4
#: Losses with which estimators are compared, and all of them.
_FEW = ("margin", "probability")
_LOSSES = ("margin", "probability", "probability_margin", "ce", "log_odds", "dlr")
#: Draws in a gradient of a randomised defense, as against steps, and how they are averaged.
_AVERAGES = ((1, "eot"), (4, "eot"), (8, "eot"), (16, "eot"), (8, "selective"))
#: Draws with which the best climbs are tried once more in the end, and how they are averaged.
_MANY, _HOW = 10, ("eot", "selective")
#: By how much the share of its draws that an image is left in may be luck.
_LUCK = 0.15
#: Restarts, and classes to climb towards.
_RUNS = ((1, 0), (4, 0), (1, 3), (1, 9))
#: Candidates that come out of the search.
KEPT = 3
#: Key of the finding among prepared tensors.
FOUND = "found"


def search(context: PrepareContext, passes: int) -> dict[str, Tensor]:
    """The finding, as bytes of JSON under :data:`FOUND`: candidates, best first, and what was tried.

    Args:
        passes: per example, of the attack that it is for.

    Raises:
        InputError: where the data have no images to search on.
    """
    defense = context.defense
    assert defense is not None, "what suits a defense is searched per defense"
    images = context.train if context.validation is None else context.validation
    if not len(images):
        raise InputError("adaptive: is adapted on validation images, and the data have none")
    x, y = images.at(slice(_IMAGES)).to(context.device), images.y[:_IMAGES].to(context.device)
    arena = _Arena(defense, context, x, y, min(_MOST, max(_LEAST, round(_SHARE * passes))))
    samples = 4 if defense.randomized else 1
    (square,) = searches(samples)
    order = arena.halve(
        [Candidate(each, loss, "momentum", samples) for each in _estimators(defense) for loss in _FEW] + [square],
        2 * KEPT,
    )
    # What one estimator leaves standing often falls to another: the two best go on side by side.
    ahead = order[: order.index(square)] if square in order else order
    best = _first_of_each(ahead, lambda candidate: written(candidate.estimator))[:2]
    best = arena.refine(best, 1, lambda c: [replace(c, loss=loss) for loss in _LOSSES if _fits(loss, context)])
    if defense.randomized:
        best = arena.refine(best, 1, lambda c: [replace(c, samples=m, average=how) for m, how in _AVERAGES])
    best = arena.refine(best, 1, lambda c: [replace(c, optimiser=rule) for rule in (*RULES, "apgd")])
    best = arena.refine(best, KEPT - 1, lambda c: [replace(c, restarts=n, classes=k) for n, k in _RUNS])
    climbs = best or [candidate for candidate in order if candidate.by_gradients][:KEPT]
    if defense.randomized:  # what is best with few passes has few draws, and need not be best with many
        many = [replace(c, samples=_MANY, average=how, restarts=1, classes=0) for c in climbs for how in _HOW]
        climbs = _first_of_each([*climbs, *many], str)
    best = arena.together([*climbs, square], max(_LEAST, round(_LAST * passes)), KEPT)
    found = {"best": [vars(candidate) for candidate in best], "says": arena.says(best)}
    return {FOUND: torch.frombuffer(bytearray(json.dumps(found).encode()), dtype=torch.uint8).clone()}


def _estimators(defense: Defense) -> list[Any]:
    """The estimators to compare, each once: an approximation named ``identity`` is the estimator of that name."""
    return [each for each in estimators_for(defense) if each != {"bpda": "identity"}]


def _first_of_each(candidates: list[Candidate], kind: Callable[[Candidate], str]) -> list[Candidate]:
    """Of each kind the first, in their order."""
    found: dict[str, Candidate] = {}
    for candidate in candidates:
        found.setdefault(kind(candidate), candidate)
    return list(found.values())


def _fits(loss: str, context: PrepareContext) -> bool:
    """Whether the loss is defined; ``dlr`` towards a class needs four."""
    return loss != "dlr" or context.info.num_classes >= 4


def read(prepared: Mapping[str, Tensor]) -> tuple[list[Candidate], str]:
    """What :func:`search` found: the candidates, best first, and a sentence about them."""
    found = json.loads(bytes(prepared[FOUND].tolist()))
    return [Candidate(**fields) for fields in found["best"]], str(found["says"])


class _Arena:
    """The validation images, and how candidates do on them.

    Args:
        first: passes per image of a candidate in its first round.
    """

    def __init__(self, defense: Defense, context: PrepareContext, x: Tensor, y: Tensor, first: int) -> None:
        self.defense, self.context, self.x, self.y, self.first = defense, context, x, y, first
        self.trials = 0
        #: Of each candidate, as text: its estimator, and what it left of each image with the largest budget that it
        #: got, ``(N,)``: the share of draws, and a little more the further it was from fooling on the others.
        self.left: dict[str, tuple[str, Tensor]] = {}

    def refine(
        self, best: list[Candidate], keep: int, ways: Callable[[Candidate], list[Candidate]]
    ) -> list[Candidate]:
        """The best ``keep`` among the ``ways`` of each of the ``best`` so far, all together best first."""
        kept = [way for candidate in best for way in self.halve(ways(candidate), keep)]
        return sorted(kept, key=self.leaves)

    def halve(self, candidates: list[Candidate], keep: int) -> list[Candidate]:
        """The best ``keep``, best first. Those that do not apply drop out."""
        passes, going = self.first, candidates
        while True:
            going = sorted((c for c in going if self._try(c, passes)), key=self.leaves)
            if len(going) <= keep:
                return going
            going, passes = going[: max(keep, len(going) // 2)], 2 * passes

    def together(self, candidates: list[Candidate], passes: int, keep: int) -> list[Candidate]:
        """The ``keep`` that leave least together, after ``passes`` per image each.

        First the one that leaves least alone, then always what takes most of what those before it leave, as far as that
        is not luck; among equals a climb by another estimator, then what leaves least alone.
        """
        rest, kept = [candidate for candidate in candidates if self._try(candidate, passes)], list[Candidate]()
        standing = torch.ones(len(self.x), dtype=torch.float64)

        def rank(candidate: Candidate) -> tuple[int, bool, float]:
            if not kept:
                return 0, False, self.leaves(candidate)
            taken = standing - self._of_each(candidate)
            surely = taken[taken > _LUCK].sum()
            again = not candidate.by_gradients or candidate.estimator in [other.estimator for other in kept]
            return -round(_FINAL_DRAWS * float(surely)), again, self.leaves(candidate)

        while rest and len(kept) < keep:
            kept.append(min(rest, key=rank))
            rest.remove(kept[-1])
            standing = torch.minimum(standing, self._of_each(kept[-1]))
        return kept

    def leaves(self, candidate: Candidate) -> float:
        """What the candidate left in the mean over the images."""
        return float(self._of_each(candidate).mean())

    def _of_each(self, candidate: Candidate) -> Tensor:
        return self.left[str(candidate)][1]

    def _try(self, candidate: Candidate, passes: int) -> bool:
        """Note what the candidate leaves; whether it applies."""
        defense, n = self.defense, len(self.x)
        generator = torch.Generator().manual_seed(0)
        target = Target(
            defense, self.context.threat, n, knowledge="gradient", generator=generator, randomized=defense.randomized
        )
        with seeded("adaptive", "trial"):  # the same luck for all
            try:
                pool = Pool(target, self.x, self.y, 2, _DRAWS)
                candidate.run(pool, pool.everyone, passes, compared_for_free=True)
            except (NotApplicable, InputError):  # such as an identity where g changes the shape
                return False
            pool.race(_FINAL_DRAWS, among=2)
        # Ties in how often it fools are broken by how nearly.
        self.left[str(candidate)] = written(candidate.estimator), (1 - pool.key.amax(0)).cpu()
        self.trials += 1
        report(min(0.99, self.trials / 120), f"trial {self.trials}: {candidate}")
        return True

    def says(self, best: list[Candidate]) -> str:
        """The finding in a sentence."""
        per_estimator: dict[str, float] = {}
        for name, left in self.left.values():
            per_estimator[name] = max(0.0, min(float(left.mean()), per_estimator.get(name, 1.0)))
        others = ", ".join(f"{name} {100 * left:.0f}" for name, left in sorted(per_estimator.items(), key=_second))
        return (
            f"after {self.trials} trials on {len(self.x)} validation images: {best[0]}, which left "
            f"{100 * max(0.0, self.leaves(best[0])):.0f} % of draws; best of each estimator (%): {others}"
        )


def _second(pair: tuple[str, float]) -> float:
    return pair[1]
