"""What a target hands out: labels, and losses and gradients with the logits that they belong to."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from bench.contracts.defense import Defense

#: A differentiable path from images to logits: ``(defense, x) -> logits``.
Through = Callable[[Defense, Tensor], Tensor]


class Objective(Protocol):
    """What a gradient attack maximises: logits ``(M, K)`` to one value per row ``(M,)``."""

    def __call__(self, logits: Tensor) -> Tensor: ...

    def at(self, rows: slice) -> Objective:
        """The objective of a slice of the rows."""
        ...


#: The label :meth:`Target.labels` gives to an input that the defense's detector rejects.
REJECTED = -1
#: The label of an output that contains NaN or infinity: no class at all, and so a wrong one.
NOT_FINITE = -2


def predictions(logits: Tensor) -> Tensor:
    """Labels ``(M,)`` of ``logits (M, K)``; :data:`NOT_FINITE` where a logit is NaN or infinite."""
    labels = logits.argmax(1)
    # A finite sum has finite terms, and takes less time than a look at each.
    if math.isfinite(logits.sum().item()):
        return labels
    return torch.where(torch.isfinite(logits).all(1), labels, NOT_FINITE)


def select(logits: Tensor, classes: Tensor | None) -> Tensor:
    """``(M, k)`` of ``logits (M, K)``: all of them (None), the ``classes`` (int64 ``(M, k)``) or the sums weighted by
    ``classes`` (floating ``(M, k, K)``)."""
    if classes is None:
        return logits
    if classes.is_floating_point():
        return torch.bmm(classes, logits[:, :, None]).squeeze(2)
    return logits.gather(1, classes)


@dataclass
class Evaluation:
    """One gradient evaluation: ``loss (M,)``, ``grad`` shaped like x, and ``logits (M, K)``.

    ``scores (M,)`` are the detector's, where it was taken into account: loss and gradient are then those of the joint
    objective (``bench.contracts.detection``).
    """

    loss: Tensor
    grad: Tensor
    logits: Tensor
    scores: Tensor | None = None


@dataclass
class Jacobian:
    """Logits ``(M, K)`` and the gradients ``(M, k, …)`` of k of them, or sums, with respect to the input."""

    logits: Tensor
    grads: Tensor
