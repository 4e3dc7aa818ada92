"""What a gradient estimator is, and the base of those that are a differentiable path from an input to logits."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from attacks.toolkit.joint import with_detector
from attacks.toolkit.layers import resized
from attacks.toolkit.losses import Goal
from bench.contracts.answers import Evaluation, Jacobian
from bench.contracts.attack import PrepareContext
from bench.contracts.defense import Defense
from bench.contracts.errors import InputError
from bench.contracts.target import Target


@runtime_checkable
class Estimator(Protocol):
    """How to get a gradient.

    ``true_forward``: whether its logits are those of the defense itself. ``prepares``: whether ``prepare`` does
    anything.
    """

    @property
    def true_forward(self) -> bool: ...

    @property
    def prepares(self) -> bool: ...

    def evaluate(self, target: Target, x: Tensor, goal: Goal, index: Tensor) -> Evaluation:
        """Loss ``(M,)``, gradient shaped like ``x`` and logits ``(M, K)`` at the rows ``x`` of examples ``index``."""
        ...

    def jacobian(self, target: Target, x: Tensor, index: Tensor, classes: Tensor | None = None) -> Jacobian:
        """Logits ``(M, K)`` and gradients ``(M, k, …)`` of ``classes`` (see :meth:`Target.jacobian`)."""
        ...

    def prepare(self, context: PrepareContext) -> dict[str, Tensor]:
        """Train or measure whatever the estimator needs, once per defense; mostly nothing."""
        ...


class Differentiable:
    """An estimator defined by a differentiable path from x to logits."""

    true_forward = True
    prepares = False

    def logits(self, target: Target, defense: Defense, x: Tensor) -> Tensor:
        raise NotImplementedError

    def evaluate(self, target: Target, x: Tensor, goal: Goal, index: Tensor) -> Evaluation:
        at = target.evaluate(x, lambda defense, rows: self.logits(target, defense, rows), goal, index)
        return with_detector(target, x, goal, index, at)

    def jacobian(self, target: Target, x: Tensor, index: Tensor, classes: Tensor | None = None) -> Jacobian:
        return target.jacobian(x, lambda defense, rows: self.logits(target, defense, rows), index, classes=classes)

    def prepare(self, context: PrepareContext) -> dict[str, Tensor]:
        return {}


class _StraightThrough(torch.autograd.Function):
    """Exactly the first argument forward; the gradient goes to the second, untouched."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, stand_in: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, grad


def straight_through(value: Tensor, stand_in: Tensor) -> Tensor:
    """A tensor with the value of ``value`` and the gradient of ``stand_in``, resized where g changes the size.

    Raises:
        InputError: when g changes the number of channels or of dimensions, where an identity gradient is not defined.
    """
    if stand_in.ndim != value.ndim:
        shapes = f"{tuple(stand_in.shape[1:])} to {tuple(value.shape[1:])}"
        raise InputError(f"identity gradient: the transform maps {shapes}; declare an approximation instead")
    if stand_in.shape[1] != value.shape[1]:
        raise InputError(
            f"identity gradient: the transform maps {stand_in.shape[1]} channels to {value.shape[1]}; "
            "declare an approximation instead"
        )
    if stand_in.shape[2:] != value.shape[2:]:
        stand_in = resized(stand_in, tuple(value.shape[2:]))
    joined: Tensor = _StraightThrough.apply(value.detach(), stand_in)
    return joined
