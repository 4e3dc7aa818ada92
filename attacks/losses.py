"""Losses, each to be maximised by the attacker, one value per row.

Every loss has the signature ``(logits (M, K), y (M,), t (M,) or None) -> (M,)``. With ``t`` (a class other than
y per row) the loss pushes towards that class instead of the nearest one: the multi-targeted form of an
untargeted attack (Gowal et al. 2019, arXiv:1910.09338).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.errors import InputError, did_you_mean

Loss = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]


def _at(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.gather(1, labels[:, None]).squeeze(1)


def best_other(logits: Tensor, y: Tensor) -> Tensor:
    """``max_{j≠y} z_j``, shape ``(M,)``."""
    return logits.scatter(1, y[:, None], -torch.inf).amax(1)


def ce(logits: Tensor, y: Tensor, t: Tensor | None = None) -> Tensor:
    """Cross-entropy: ``-log p_y``; towards t: ``log p_t``."""
    if t is None:
        return F.cross_entropy(logits, y, reduction="none")
    return -F.cross_entropy(logits, t, reduction="none")


def margin(logits: Tensor, y: Tensor, t: Tensor | None = None) -> Tensor:
    """``max_{j≠y} z_j - z_y`` (Carlini & Wagner 2017, f6); towards t: ``z_t - z_y``. Positive on success."""
    other = best_other(logits, y) if t is None else _at(logits, t)
    return other - _at(logits, y)


def dlr(logits: Tensor, y: Tensor, t: Tensor | None = None) -> Tensor:
    """Difference of logits ratio (Croce & Hein 2020, eq. 6; towards t: eq. 7). Invariant to logit scale.

    Raises:
        InputError: with fewer than 3 classes (4 towards t), where it is undefined.
    """
    needed = 3 if t is None else 4
    if logits.shape[1] < needed:
        raise InputError(f"loss dlr: needs at least {needed} classes, got {logits.shape[1]}")
    top = logits.topk(needed, dim=1).values
    if t is None:
        return margin(logits, y) / (top[:, 0] - top[:, 2] + 1e-12)
    return margin(logits, y, t) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)


LOSSES: dict[str, Loss] = {"ce": ce, "margin": margin, "dlr": dlr}


def get_loss(name: str) -> Loss:
    """The loss of that name. Raises :class:`InputError` with a suggestion when there is none."""
    if name not in LOSSES:
        raise InputError(f"loss {name!r} does not exist{did_you_mean(name, LOSSES)}")
    return LOSSES[name]


@dataclass(frozen=True)
class Goal:
    """A loss together with the labels of the rows it is evaluated on."""

    loss: Loss
    y: Tensor
    t: Tensor | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        return self.loss(logits, self.y, self.t)

    def at(self, rows: slice | Tensor) -> Goal:
        """The goal of some of the rows (a slice, a mask or indices)."""
        return Goal(self.loss, self.y[rows], None if self.t is None else self.t[rows])

    def repeat(self, n: int) -> Goal:
        """The goal of the whole batch stacked ``n`` times."""
        return Goal(self.loss, self.y.repeat(n), None if self.t is None else self.t.repeat(n))
