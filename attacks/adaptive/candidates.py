"""Ways to attack: combinations of estimator, average over draws, loss, step rule, restarts and classes; and Square."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from attacks.gradient.apgd import Ascent, DenseClimb
from attacks.score.square import square
from attacks.toolkit.ascent import Rule, ascend
from attacks.toolkit.estimators import Estimator, as_estimator
from attacks.toolkit.losses import Goal, get_loss
from attacks.toolkit.pool import Pool
from attacks.toolkit.selection import Best
from bench.contracts.defense import Defense

#: APGD's share of a window in which the loss has to rise, and the weight of its step (Croce & Hein 2020).
_RHO, _ALPHA = 0.75, 0.75
#: First step in units of eps, from a random point and from near a best one. (APGD has its own.)
_FAR, _NEAR = 1.0, 0.5
#: The estimator of a way that follows no gradient.
SCORES = "scores"


@dataclass(frozen=True)
class Candidate:
    """One way to attack.

    Attributes:
        estimator: as written in a suite, without the average over draws; :data:`SCORES` with Square.
        loss: of the climb.
        optimiser: ``apgd`` or a rule of ``attacks.toolkit.ascent``; ``square``, which follows no gradient, always
            begins from points of its own, and has restarts as its budget allows.
        samples: draws in a gradient, or of a proposal of Square, where the defense is randomised.
        average: over the draws: ``eot``, or ``selective`` (``attacks.toolkit.selective``).
        restarts: climbs that share a budget, each from a new start.
        classes: when above 0, climbs go towards one class each, in turn those so many that x is nearest to.
    """

    estimator: Any
    loss: str
    optimiser: str
    samples: int
    average: str = "eot"
    restarts: int = 1
    classes: int = 0

    def __str__(self) -> str:
        draws = f", {self.samples} draws" if self.samples > 1 else ""
        how = " (selective)" if self.samples > 1 and self.average == "selective" else ""
        several = f", {self.restarts} restarts" if self.restarts > 1 else ""
        towards = f", towards {self.classes} classes" if self.classes else ""
        return f"{written(self.estimator)}, {self.loss}, {self.optimiser}{draws}{how}{several}{towards}"

    def gradient(self) -> Estimator:
        """Its estimator, with the average over draws."""
        return as_estimator({self.average: {"samples": self.samples, "of": self.estimator}})

    @property
    def by_gradients(self) -> bool:
        """Whether it climbs, and so can go on from a point that it is given."""
        return bool(self.estimator != SCORES)

    @property
    def climbs(self) -> int:
        """Climbs that share a budget."""
        return self.restarts * max(1, self.classes)

    def run(
        self, pool: Pool, index: Tensor, passes: int, start: Tensor | None = None, turn: int = 0,
        compared_for_free: bool = False,
    ) -> None:  # fmt: skip
        """Climb, or search, for the examples ``index`` with ``passes`` each, and offer what is found to the pool.

        Of the passes comparisons take half at most, so that there may be fewer climbs; one there always is.

        Args:
            compared_for_free: whether the passes are those of gradients alone.
            start: points ``(M, …)`` to begin from; None: random ones of the ball. With a start there is one climb.
            turn: towards which of the classes a single climb goes.
        """
        randomized = pool.target.randomized
        if not self.by_gradients:
            self._square(pool, index, passes if compared_for_free else passes - pool.draws)
            return
        each = (self.samples if randomized else 1) * cost(self.estimator)
        # Two points of every climb are tried on draws of their own.
        tries = 2 * pool.draws if randomized and not compared_for_free else 0
        climbs = 1 if start is not None else max(1, min(self.climbs, passes // (2 * max(each, tries))))
        passes -= climbs * tries
        for number in range(climbs):
            # Random numbers are drawn for the whole shard, so that no example's depend on another's success.
            begin = pool.target.threat.sample(pool.x, pool.target.generator)[index] if start is None else start
            going = pool.fallen[index] < 1 if not randomized else torch.ones_like(index, dtype=torch.bool)
            if not going.any():
                return
            steps = max(2, passes // (climbs * each))
            self._climb(pool, index[going], begin[going], steps, turn + number, _FAR if start is None else _NEAR)

    def _climb(self, pool: Pool, index: Tensor, start: Tensor, steps: int, turn: int, first: float) -> None:
        target, x = pool.target, pool.x[index]
        goal = Goal.of(target, get_loss(self.loss), pool.y).at(index)
        if self.classes and target.towards is None:
            ranked = pool.ranked[: self.classes]
            goal = goal.towards(ranked[turn % len(ranked)][index])
        estimator = self.gradient()
        points: tuple[Tensor, ...]
        if self.optimiser != "apgd":
            rule = cast("Rule", self.optimiser)
            points = ascend(target, x, start, goal, index, estimator, rule, steps, first)
        elif estimator.true_forward and not target.randomized:
            best = Best(pool.x)
            Ascent(estimator, steps, _RHO, _ALPHA, 1).run(target, best, x, start, goal, index)
            points = (best.x[index],)
        else:
            climb = DenseClimb(x, start, goal, index, target.ball, steps, _RHO, _ALPHA)
            Ascent(estimator, steps, _RHO, _ALPHA, 1).climb(target, climb)
            points = climb.best, climb.point
        for point in points if target.randomized or not estimator.true_forward else points[:1]:
            pool.offer(point, index)

    def _square(self, pool: Pool, index: Tensor, queries: int) -> None:
        index = index if pool.target.randomized else index[pool.fallen[index] < 1]
        if len(index):
            target = pool.target.subset(index, "score")
            queries = max(self.samples, queries)
            found = square(target, pool.x[index], pool.y[index], queries=queries, loss=self.loss, draws=self.samples)
            pool.offer(found, index)


def cost(estimator: Any) -> int:
    """Passes of one gradient."""
    if isinstance(estimator, dict):
        ((name, settings),) = estimator.items()
        if name == "finite_difference":
            return 2 * int(settings["samples"])
        if name == "with_guide":
            return 2
    return 1


def written(estimator: Any) -> str:
    """An estimator in words."""
    if isinstance(estimator, str):
        return estimator
    ((name, settings),) = estimator.items()
    if not isinstance(settings, dict):
        return f"{name} {settings}"
    rest = ", ".join(f"{key} {written(value)}" if key == "of" else f"{key} {value}" for key, value in settings.items())
    return f"{name} ({rest})"


def searches(*draws: int) -> list[Candidate]:
    """Square with each of these numbers of draws for a proposal."""
    return [Candidate(SCORES, "margin", "square", samples) for samples in draws]


def estimators_for(defense: Defense) -> list[Any]:
    """Every gradient estimator that the defense gives reason to try, as in a suite; none that has to be trained."""
    found: list[Any] = ["exact", "identity", "classifier", {"finite_difference": {"samples": 16}}]
    found += [{"bpda": name} for name in defense.approximations()]
    found += [{"variant": name} for name in defense.variants()]
    if defense.guide() is not None:
        found += ["guide", {"with_guide": {"of": "identity", "weight": 1.0}}]
    return found
