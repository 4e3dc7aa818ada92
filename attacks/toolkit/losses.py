"""Losses, each to be maximised by the attacker, one value per row.

Every loss has the signature ``(logits (M, K), y (M,), t (M,) or None) -> (M,)``. With ``t`` (a class other than
y per row) the loss pushes towards that class instead of the nearest one: the multi-targeted form of an
untargeted attack (Gowal et al. 2019, arXiv:1910.09338).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, cast

import pydantic
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.contracts.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from bench.contracts.target import Target

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


def log_odds(logits: Tensor, y: Tensor, t: Tensor | None = None) -> Tensor:
    """``log Σ_{j≠y} exp z_j - z_y``, the log odds against y; towards t: the log odds of t.

    Its gradient has the direction of cross-entropy's, 1/(1-p_y) times as long, and does not die where the softmax
    saturates.
    """
    label = y if t is None else t
    against = logits.scatter(1, label[:, None], -torch.inf).logsumexp(1) - _at(logits, label)
    return against if t is None else -against


def margin(logits: Tensor, y: Tensor, t: Tensor | None = None) -> Tensor:
    """``max_{j≠y} z_j - z_y`` (Carlini & Wagner 2017, f6); towards t: ``z_t - z_y``. Positive on success."""
    other = best_other(logits, y) if t is None else _at(logits, t)
    return other - _at(logits, y)


def dlr(logits: Tensor, y: Tensor, t: Tensor | None = None) -> Tensor:
    """Difference of logits ratio: the margin over ``z_(1) - z_(3)``, the largest and the third largest logit; towards
    t: over ``z_(1) - (z_(3) + z_(4))/2`` (Croce & Hein 2020, eq. 6 and 7). Invariant to the logits' scale.

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


@dataclass(frozen=True)
class MLogit:
    """``min(margin, κ)`` (Carlini & Wagner 2017, f6): the margin, of no more interest beyond κ in logits."""

    kappa: float = 0.0

    def __call__(self, logits: Tensor, y: Tensor, t: Tensor | None = None) -> Tensor:
        return margin(logits, y, t).clamp_max(self.kappa)

    def reach(self, logits: Tensor, y: Tensor) -> Tensor:
        """The targeted form, for which y is the class to reach."""
        return (-margin(logits, y)).clamp_max(self.kappa)


def logit(logits: Tensor, y: Tensor, t: Tensor | None = None) -> Tensor:
    """One logit alone: ``-z_y``; towards t: ``z_t`` (Ozbulak, De Neve & Van Messem 2020)."""
    return -_at(logits, y) if t is None else _at(logits, t)


def probability(logits: Tensor, y: Tensor, t: Tensor | None = None) -> Tensor:
    """``-p_y``, p the softmax; towards t: ``p_t``. Its mean over draws follows how often a randomised defense is right,
    where a margin follows by how much."""
    p = logits.softmax(1)
    return -_at(p, y) if t is None else _at(p, t)


def probability_margin(logits: Tensor, y: Tensor, t: Tensor | None = None) -> Tensor:
    """``max_{j≠y} p_j - p_y``, p the softmax; towards t: ``p_t - p_y`` (Xie et al. 2024, PMA). Positive on success."""
    return margin(logits.softmax(1), y, t)


LOSSES: dict[str, Loss] = {
    "ce": ce, "log_odds": log_odds, "margin": margin, "dlr": dlr, "m_logit": MLogit(), "logit": logit,
    "probability": probability, "probability_margin": probability_margin,
}  # fmt: skip


def get_loss(value: Any) -> Loss:
    """A loss from its written form: ``"ce"``, or with settings ``{"m_logit": {"kappa": 5}}``.

    Raises:
        InputError: with a suggestion when there is no such loss; for a setting that it does not have.
    """
    if callable(value):
        return cast("Loss", value)
    name, settings = value, dict[str, Any]()
    if isinstance(value, Mapping) and len(value) == 1:
        ((name, given),) = value.items()
        settings = dict(given)
    if not isinstance(name, str) or name not in LOSSES:
        raise InputError(f"loss {name!r} does not exist{did_you_mean(str(name), LOSSES)}")
    if not settings:
        return LOSSES[name]
    if name != "m_logit" or set(settings) != {"kappa"}:
        raise InputError(f"loss {name}: has no settings {settings} (m_logit has kappa)")
    return MLogit(float(settings["kappa"]))


#: Annotation for attack parameters: a loss or its written form.
LossLike = Annotated[Any, pydantic.AfterValidator(get_loss)]


@dataclass(frozen=True)
class Goal:
    """What an attack maximises on each row: a loss together with the labels of the rows.

    A targeted attack maximises the negative of the untargeted loss of the class it has to reach: ``reach``.
    """

    loss: Loss
    y: Tensor
    t: Tensor | None = None
    reach: bool = False

    @classmethod
    def of(cls, target: Target, loss: Loss, y: Tensor) -> Goal:
        """The goal of all examples of a target: away from y, or towards the class it names for each."""
        return cls(loss, y) if target.towards is None else cls(loss, target.towards, reach=True)

    def __call__(self, logits: Tensor) -> Tensor:
        if not self.reach:
            return self.loss(logits, self.y, self.t)
        if isinstance(self.loss, MLogit):
            return self.loss.reach(logits, self.y)
        return -self.loss(logits, self.y, None)

    def margin(self, logits: Tensor) -> Tensor:
        """By how much the logits of each row satisfy the goal, ``(M,)``: positive on success."""
        value = margin(logits, self.y)
        return -value if self.reach else value

    def at(self, rows: slice | Tensor) -> Goal:
        """The goal of some of the rows (a slice, a mask or indices)."""
        return Goal(self.loss, self.y[rows], None if self.t is None else self.t[rows], self.reach)

    def repeat(self, n: int) -> Goal:
        """The goal of the whole batch stacked ``n`` times."""
        return Goal(self.loss, self.y.repeat(n), None if self.t is None else self.t.repeat(n), self.reach)

    def towards(self, t: Tensor | None) -> Goal:
        """The untargeted goal pursued through one class ``t`` per row; itself when a class has to be reached."""
        return self if self.reach else Goal(self.loss, self.y, t)


def repeat(rows: Tensor, times: int) -> Tensor:
    """``rows (M, …)`` stacked ``times`` times, in the order of :meth:`Goal.repeat`."""
    return rows.repeat(times, *[1] * (rows.ndim - 1))
