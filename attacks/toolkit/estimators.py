"""Gradient estimators: how an attack gets a gradient of a defense that hides it.

Estimators are values that compose: ``eot(bpda("tanh"), samples=32)``. An optimiser takes any loss and any
estimator. BPDA, BPDA-I, EOT and reparameterization, as the literature names them, are such compositions given a
name in ``bench.yaml``, where they are written as nested mappings::

    estimator: {eot: {samples: 32, of: {bpda: tanh}}}
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, get_args

import pydantic
import torch
from torch import Tensor

from attacks.toolkit.directions import Directions
from attacks.toolkit.distillation import distilled
from attacks.toolkit.finite_differences import FiniteDifference
from attacks.toolkit.imitation import imitate, train_imitator
from attacks.toolkit.inside import guide, mean_transform, variant, with_guide
from attacks.toolkit.joint import with_detector
from attacks.toolkit.losses import Goal, repeat
from attacks.toolkit.paths import Differentiable, Estimator, straight_through
from attacks.toolkit.selective import selective
from bench.contracts.answers import Evaluation, Jacobian
from bench.contracts.attack import PrepareContext
from bench.contracts.defense import Defense, as_logits
from bench.contracts.errors import InputError, did_you_mean
from bench.contracts.target import Target


@dataclass(frozen=True)
class Exact(Differentiable):
    """Plain automatic differentiation through the defense as it is."""

    def logits(self, target: Target, defense: Defense, x: Tensor) -> Tensor:
        return defense(x)


@dataclass(frozen=True)
class Identity(Differentiable):
    """BPDA-I: the gradient of the classifier at g(x), applied to x (Athalye et al. 2018, section 4.1.1).

    The point is g(x), never g(x) + x.
    """

    def logits(self, target: Target, defense: Defense, x: Tensor) -> Tensor:
        with torch.no_grad():
            value = defense.transform(x)
        return as_logits(defense.classifier(straight_through(value, x)))


@dataclass(frozen=True)
class Classifier(Differentiable):
    """The classifier at x itself, as if there were no transform: white-box transfer (Xiao & Zheng 2020, 4.2)."""

    true_forward = False

    def logits(self, target: Target, defense: Defense, x: Tensor) -> Tensor:
        return as_logits(defense.classifier(x))


@dataclass(frozen=True)
class BPDA(Differentiable):
    """Backward pass differentiable approximation: g forward, a declared stand-in backward (Athalye et al. 2018).

    Args:
        name: a key of ``defense.approximations()``; ``"first"`` takes the first one declared. A defense that
            declares none is differentiated as it is: silence gains nothing, since the identity and
            finite-difference estimators run as well.
    """

    name: str = "first"

    def logits(self, target: Target, defense: Defense, x: Tensor) -> Tensor:
        declared = defense.approximations()
        if not declared:
            return defense(x)
        name = next(iter(declared)) if self.name == "first" else self.name
        if name not in declared:
            name = next(iter(declared))
            target.counts.notes.add(f"approximation {self.name!r} is not declared; {name!r} was used")
        approximation = declared[name]
        z = approximation.through(x)
        if not approximation.exact_forward:
            with torch.no_grad():
                value = defense.transform(x)
            z = straight_through(value, z)
        return as_logits(defense.classifier(z))


@dataclass(frozen=True)
class Reparameterized(Differentiable):
    """Attack through a network q trained to imitate g: gradients and forward passes of f(q(x)).

    Xiao & Zheng 2020, eq. 6 and appendix A.2: q(x, δ0) is fully convolutional, sees the start noise δ0 as well
    as the image, and is trained on ‖q(x, δ0) - g(x; δ0)‖². The network is trained once per defense.

    Args:
        epochs: passes over the training images.
        width: channels of the hidden layers.
    """

    true_forward = False
    prepares = True
    epochs: int = 30
    width: int = 32

    def logits(self, target: Target, defense: Defense, x: Tensor) -> Tensor:
        return as_logits(defense.classifier(imitate(target, x, self.width)))

    def prepare(self, context: PrepareContext) -> dict[str, Tensor]:
        return train_imitator(context, epochs=self.epochs, width=self.width)


@dataclass(frozen=True)
class EOT:
    """Expectation over transformation: the mean over draws of the defense's randomness (Athalye et al. 2018).

    The draws are stacked into one batch. A defense that is not randomised is evaluated once.

    Args:
        of: the estimator to average.
        samples: draws per gradient.
        average: ``"loss"`` averages gradients of the loss; ``"logits"`` takes the loss of the mean logits
            (differentiable estimators only).
    """

    of: Estimator
    samples: int = 16
    average: str = "loss"

    @property
    def true_forward(self) -> bool:
        return self.of.true_forward

    @property
    def prepares(self) -> bool:
        return self.of.prepares

    def evaluate(self, target: Target, x: Tensor, goal: Goal, index: Tensor) -> Evaluation:
        m = self.samples if target.randomized else 1
        if m == 1:
            return self.of.evaluate(target, x, goal, index)
        if self.average == "logits":
            return self._of_mean_logits(target, x, goal, index, m)
        rows = repeat(x, m)
        each = self.of.evaluate(target, rows, goal.repeat(m), index.repeat(m))
        n = len(x)
        return Evaluation(
            each.loss.view(m, n).mean(0),
            each.grad.view(m, *x.shape).mean(0),
            each.logits.view(m, n, -1).mean(0),
            None if each.scores is None else each.scores.view(m, n).mean(0),
        )

    def jacobian(self, target: Target, x: Tensor, index: Tensor, classes: Tensor | None = None) -> Jacobian:
        m, n = self.samples if target.randomized else 1, len(x)
        if m == 1:
            return self.of.jacobian(target, x, index, classes)
        rows = repeat(x, m)
        each = self.of.jacobian(target, rows, index.repeat(m), None if classes is None else repeat(classes, m))
        return Jacobian(each.logits.view(m, n, -1).mean(0), each.grads.view(m, n, *each.grads.shape[1:]).mean(0))

    def _of_mean_logits(self, target: Target, x: Tensor, goal: Goal, index: Tensor, m: int) -> Evaluation:
        inner = self.of
        if not isinstance(inner, Differentiable):
            raise InputError(f"eot: average 'logits' needs a differentiable estimator, got {inner}")

        def through(defense: Defense, x: Tensor) -> Tensor:
            logits = inner.logits(target, defense, repeat(x, m))
            return logits.view(m, len(x), -1).mean(0)

        at = target.evaluate(x, through, goal, index, cost=m)
        return with_detector(target, x, goal, index, at, draws=m)

    def prepare(self, context: PrepareContext) -> dict[str, Tensor]:
        return self.of.prepare(context)


def exact() -> Estimator:
    """Plain automatic differentiation."""
    return Exact()


def identity() -> Estimator:
    """BPDA with the identity as the backward pass of g."""
    return Identity()


def classifier() -> Estimator:
    """The classifier alone, without the transform: white-box transfer."""
    return Classifier()


def bpda(name: str = "first") -> Estimator:
    """BPDA with the declared approximation ``name``."""
    return BPDA(name)


def finite_difference(samples: int = 50, sigma: float = 0.03, directions: Directions = "orthogonal") -> Estimator:
    """Antithetic finite differences along ``samples`` random directions."""
    if directions not in get_args(Directions):
        raise InputError(f"finite_difference: directions {directions!r} is not one of {get_args(Directions)}")
    return FiniteDifference(samples, sigma, directions)


def reparameterized(epochs: int = 30, width: int = 32) -> Estimator:
    """Gradients of f(q(x)), q a fully convolutional network trained to imitate g."""
    return Reparameterized(epochs, width)


def eot(of: Estimator, samples: int = 16, average: str = "loss") -> Estimator:
    """The mean of ``of`` over ``samples`` draws of the defense's randomness; ``average``: of the loss's gradients, or
    with ``logits`` the gradient of the loss of the mean logits."""
    if samples < 1:
        raise InputError(f"eot: samples {samples} must be at least 1")
    if average not in ("loss", "logits"):
        raise InputError(f"eot: average {average!r} is not 'loss' or 'logits'")
    return EOT(of, samples, average)


#: How each estimator is made, by the name under which it is written.
ESTIMATORS: dict[str, Callable[..., Estimator]] = {
    "exact": exact,
    "identity": identity,
    "classifier": classifier,
    "bpda": bpda,
    "finite_difference": finite_difference,
    "reparameterized": reparameterized,
    "eot": eot,
    "distilled": distilled,
    "variant": variant,
    "mean_transform": mean_transform,
    "guide": guide,
    "with_guide": with_guide,
    "selective": selective,
}


def as_estimator(value: Any) -> Estimator:
    """An estimator from its written form.

    ``"identity"``; ``{bpda: tanh}``; ``{finite_difference: {samples: 64}}``; ``{eot: {samples: 16, of: bpda}}``.

    Raises:
        InputError: naming what is not an estimator or which setting is unknown.
    """
    if isinstance(value, Estimator) and not isinstance(value, type):
        return value
    if isinstance(value, str):
        value = {value: {}}
    if not isinstance(value, dict) or len(value) != 1:
        raise InputError(f"estimator: expected a name or a mapping with one name, got {value!r}")
    ((name, settings),) = value.items()
    if name not in ESTIMATORS:
        raise InputError(f"estimator {name!r} does not exist{did_you_mean(str(name), ESTIMATORS)}")
    if not isinstance(settings, dict):
        settings = {"name": settings}
    settings = dict(settings)
    if "of" in settings:
        settings["of"] = as_estimator(settings["of"])
    try:
        return ESTIMATORS[name](**settings)
    except TypeError as error:
        raise InputError(f"estimator {name}: {error}") from None


#: Annotation for attack parameters: an :class:`Estimator` or its written form.
EstimatorLike = Annotated[Any, pydantic.AfterValidator(as_estimator)]


def prepare_estimator(context: PrepareContext, *, estimator: EstimatorLike, **_: object) -> dict[str, Tensor]:
    """The ``prepare`` of an attack whose estimator may have something to learn first (see ``Reparameterized``)."""
    return as_estimator(estimator).prepare(context)


def estimator_prepares(*, estimator: EstimatorLike, **_: object) -> bool:
    """The ``prepares`` of such an attack: whether this estimator has anything to learn."""
    return as_estimator(estimator).prepares


__all__ = [
    "BPDA", "EOT", "Classifier", "Estimator", "EstimatorLike", "Exact", "FiniteDifference", "Identity",
    "Reparameterized", "as_estimator", "bpda", "classifier", "eot", "estimator_prepares", "exact", "finite_difference",
    "identity", "prepare_estimator", "reparameterized",
]  # fmt: skip
