"""Gradient estimators that look inside a transform: at easier versions of it, at its mean, at what guides it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from attacks.toolkit.joint import with_detector
from attacks.toolkit.losses import Goal, repeat
from attacks.toolkit.paths import Differentiable, Estimator, straight_through
from bench.contracts.answers import Evaluation, Jacobian
from bench.contracts.attack import PrepareContext
from bench.contracts.defense import Defense, Guide, as_logits
from bench.contracts.errors import NotApplicable
from bench.contracts.target import Target

#: By how much a point where a guide does not choose as it should counts as worse, in logits.
_FAR = 1e4


def guide_of(defense: Defense) -> Guide:
    """The network that the transform goes by.

    Raises:
        NotApplicable: where the defense declares none.
    """
    guide = defense.guide()
    if guide is None:
        raise NotApplicable("the defense declares no network that its transform goes by")
    return guide


@dataclass(frozen=True)
class Variant(Differentiable):
    """BPDA through an easier version of g, one that the defense declares (``Defense.variants``).

    The backward pass of g is the version's own where it has one, else the identity. The logits are those of the
    version, so candidates are compared on the defense itself.

    Args:
        name: of the version; ``"first"``: the first one declared.
    """

    true_forward = False
    name: str = "first"

    def logits(self, target: Target, defense: Defense, x: Tensor) -> Tensor:
        declared = defense.variants()
        if not declared:
            raise NotApplicable("the defense declares no variant of its transform")
        name = next(iter(declared)) if self.name == "first" else self.name
        if name not in declared:
            name = next(iter(declared))
            target.counts.notes.add(f"variant {self.name!r} is not declared; {name!r} was used")
        value = declared[name](x)
        if not value.requires_grad:
            value = straight_through(value, x)
        return as_logits(defense.classifier(value))


@dataclass(frozen=True)
class MeanTransform(Differentiable):
    """The gradient of f at E[g(x)], applied to x: the mean over draws is taken of images, not of losses.

    Args:
        samples: draws of g in the mean; one where the defense is not randomised. Each counts as a pass.
    """

    true_forward = False
    samples: int = 20

    def logits(self, target: Target, defense: Defense, x: Tensor) -> Tensor:
        draws = self._draws(target)
        with torch.no_grad():
            value = defense.transform(repeat(x, draws))
        value = value.view(draws, len(x), *value.shape[1:]).mean(0)
        return as_logits(defense.classifier(straight_through(value, x)))

    def evaluate(self, target: Target, x: Tensor, goal: Goal, index: Tensor) -> Evaluation:
        through = lambda defense, rows: self.logits(target, defense, rows)  # noqa: E731
        at = target.evaluate(x, through, goal, index, cost=self._draws(target))
        return with_detector(target, x, goal, index, at)

    def _draws(self, target: Target) -> int:
        return self.samples if target.randomized else 1


@dataclass(frozen=True)
class GuideAlone(Differentiable):
    """The network that the transform goes by (``Defense.guide``), as if it were the classifier: transfer from it."""

    true_forward = False

    def logits(self, target: Target, defense: Defense, x: Tensor) -> Tensor:
        return as_logits(guide_of(defense).logits(x))


@dataclass(frozen=True)
class WithGuide:
    """The loss of the defense plus ``weight`` times the same loss of the network that its transform goes by.

    An input that this network takes for another class is moved elsewhere by the transform.

    Args:
        of: the estimator of the defense's own loss; its logits are those that are reported.
        weight: λ ≥ 0 of the guide's loss.
    """

    of: Estimator
    weight: float = 1.0

    @property
    def true_forward(self) -> bool:
        return self.of.true_forward

    @property
    def prepares(self) -> bool:
        return self.of.prepares

    def evaluate(self, target: Target, x: Tensor, goal: Goal, index: Tensor) -> Evaluation:
        at = self.of.evaluate(target, x, goal, index)
        guide = target.evaluate(x, lambda defense, rows: as_logits(guide_of(defense).logits(rows)), goal, index)
        loss, grad = at.loss + self.weight * guide.loss, at.grad + self.weight * guide.grad
        return Evaluation(loss, grad, at.logits, at.scores)

    def jacobian(self, target: Target, x: Tensor, index: Tensor, classes: Tensor | None = None) -> Jacobian:
        """That of the defense alone: the guide's classes are no boundary of the defense."""
        return self.of.jacobian(target, x, index, classes)

    def prepare(self, context: PrepareContext) -> dict[str, Tensor]:
        return self.of.prepare(context)


@dataclass(frozen=True)
class Hijack(Differentiable):
    """BPDA-I through g with its guide's choice forced to one class, and towards points where the guide makes it.

    Where the guide does not choose ``label``, its margin is climbed, and the point counts as worse than any where it
    does; there the loss of f(g(x)) is climbed. So a run that leaves the region of the choice comes back to it.

    Args:
        label: the class that the transform shall go by.
        draws: of g, stacked into one batch; one where the defense is not randomised.
    """

    true_forward = False
    label: int
    draws: int = 1

    def logits(self, target: Target, defense: Defense, x: Tensor) -> Tensor:
        draws = self.draws if target.randomized else 1
        guide, rows = guide_of(defense), repeat(x, draws)
        with torch.no_grad():
            value = guide.forced(rows, torch.full((len(rows),), self.label, device=x.device))
        return as_logits(defense.classifier(straight_through(value, rows))).view(draws, len(x), -1).mean(0)

    def evaluate(self, target: Target, x: Tensor, goal: Goal, index: Tensor) -> Evaluation:
        draws = self.draws if target.randomized else 1
        at = target.evaluate(x, lambda d, rows: self.logits(target, d, rows), goal, index, cost=draws)
        choice = target.evaluate(x, lambda d, rows: as_logits(guide_of(d).logits(rows)), self._choice(target), index)
        missed = choice.loss <= 0
        grad = torch.where(missed.view(-1, *[1] * (x.ndim - 1)), choice.grad, at.grad)
        held = F.one_hot(goal.y, at.logits.shape[1]) * (_FAR * missed)[:, None]
        return Evaluation(at.loss - _FAR * missed, grad, at.logits + held)

    def _choice(self, target: Target) -> _Choice:
        sign = -1.0 if guide_of(target.defense).picks == "least-likely" else 1.0
        return _Choice(self.label, sign)


@dataclass(frozen=True)
class _Choice:
    """z_t - max_{j≠t} z_j of a guide's logits times ``sign``: positive where it chooses the class ``label``."""

    label: int
    sign: float

    def __call__(self, logits: Tensor) -> Tensor:
        signed = self.sign * logits
        own = signed[:, self.label]
        others = signed.clone()
        others[:, self.label] = -math.inf
        return own - others.amax(1)

    def at(self, rows: slice) -> _Choice:
        return self


def variant(name: str = "first") -> Estimator:
    """BPDA through the declared variant ``name`` of g."""
    return Variant(name)


def mean_transform(samples: int = 20) -> Estimator:
    """The gradient of f at the mean of ``samples`` draws of g(x), applied to x."""
    return MeanTransform(samples)


def guide() -> Estimator:
    """The network that the transform goes by, alone."""
    return GuideAlone()


def with_guide(of: Estimator, weight: float = 1.0) -> Estimator:
    """``of``, plus ``weight`` times the loss of the network that the transform goes by."""
    return WithGuide(of, weight)
