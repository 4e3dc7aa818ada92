"""What attacks that linearise the decision boundary share: hyperplanes, and the shortest perturbation so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from attacks.toolkit.estimators import Estimator
from attacks.toolkit.losses import Goal
from attacks.toolkit.projections import flat_length, length, per_example
from attacks.toolkit.selection import Best, strength
from bench.contracts.answers import select
from bench.contracts.target import Target
from bench.contracts.threat import Lp

#: The length of a gradient is measured in the norm dual to that of the perturbation.
DUAL = {"linf": "l1", "l2": "l2", "l1": "linf"}
#: A secant step goes this share of the way to the zero of the margin, which itself would fool no more.
_AIM = 0.95
#: Keeps divisions by the length of a vanishing gradient finite.
TINY = 1e-30


# -- hyperplanes ------------------------------------------------------------------------------------------------


class Plane(NamedTuple):
    """The linearised boundary ``{u: value + normal·(u - point) = 0}`` next to each point.

    ``logits (M, K)``: of the points; ``value (M,)``: of the linearised function there, positive beyond the boundary;
    ``normal (M, D)``: its gradient.
    """

    logits: Tensor
    value: Tensor
    normal: Tensor

    def at(self, rows: Tensor) -> Plane:
        """The planes of some of the points."""
        return Plane(self.logits[rows], self.value[rows], self.normal[rows])


class Boundary(Protocol):
    """A boundary per row that can be linearised."""

    def at(self, rows: Tensor) -> Boundary:
        """The boundaries of some of the rows."""
        ...

    def linearise(
        self, estimator: Estimator, target: Target, points: Tensor, rows: Tensor
    ) -> tuple[Plane, Boundary]:
        """The planes at ``points (M, …)`` of the examples ``rows``, and the boundaries to linearise from then on."""
        ...


@dataclass(frozen=True)
class GoalBoundary:
    """Where a goal whose loss is the margin is reached: one gradient."""

    goal: Goal

    def at(self, rows: Tensor) -> GoalBoundary:
        return GoalBoundary(self.goal.at(rows))

    def linearise(
        self, estimator: Estimator, target: Target, points: Tensor, rows: Tensor
    ) -> tuple[Plane, GoalBoundary]:
        at = estimator.evaluate(target, points, self.goal, rows)
        return Plane(at.logits, at.loss.nan_to_num(nan=0.0), at.grad.flatten(1)), self


@dataclass(frozen=True)
class NearestBoundary:
    """The nearest, once linearised, of the boundaries to several classes: one gradient each.

    Moosavi-Dezfooli et al. 2016, eq. 8: the smallest ``|f_j|/‖∇f_j‖`` of ``f_j = z_j - z_y``, in the dual norm.

    Args:
        differences: ``(M, k, K)``, the f_j as weighted sums of the logits.
        shortlist: how many classes, the nearest, are looked at again after the first time; 0: all.
    """

    differences: Tensor
    shortlist: int = 0

    @classmethod
    def of(cls, y: Tensor, classes: Tensor, num_classes: int, dtype: torch.dtype, shortlist: int) -> NearestBoundary:
        """The boundaries between ``y (M,)`` and ``classes (M, k)``."""
        differences = torch.zeros(*classes.shape, num_classes, dtype=dtype, device=y.device)
        differences.scatter_(2, classes[:, :, None], 1.0)
        return cls(differences.scatter_(2, y[:, None, None].expand(*classes.shape, 1), -1.0), shortlist)

    def at(self, rows: Tensor) -> NearestBoundary:
        return NearestBoundary(self.differences[rows], self.shortlist)

    def linearise(
        self, estimator: Estimator, target: Target, points: Tensor, rows: Tensor
    ) -> tuple[Plane, NearestBoundary]:
        at = estimator.jacobian(target, points, rows, self.differences)
        values = select(at.logits, self.differences).nan_to_num(nan=0.0)
        normals = at.grads.flatten(2)
        distance = values.abs() / flat_length(normals, DUAL[target.ball.norm]).clamp_min(TINY)
        nearest = distance.argmin(1, keepdim=True)
        plane = Plane(at.logits, values.gather(1, nearest).squeeze(1), _pick(normals, nearest).squeeze(1))
        if not 0 < self.shortlist < values.shape[1]:
            return plane, self
        few = distance.topk(self.shortlist, largest=False).indices
        return plane, NearestBoundary(_pick(self.differences, few), self.shortlist)


def _pick(values: Tensor, which: Tensor) -> Tensor:
    """``values (M, k, D)`` at ``which (M, j)`` of the k: ``(M, j, D)``."""
    return values.gather(1, which[:, :, None].expand(-1, -1, values.shape[2]))


def onto_hyperplane(points: Tensor, normal: Tensor, gain: Tensor, threat: Lp) -> Tensor:
    """The shortest δ with normal·δ = gain and point + δ in the box; where there is none, the δ that gains most.

    Every value moves to the side that gains, by min(λ, room) in linf or min(λ·|w|, room) in l2, w the normal (Croce
    & Hein 2020, section 2.2). What that gains in all is concave and piecewise linear in λ, so Newton's method from
    below ends at the solution after finitely many steps (mostly under ten, and faster than sorting the breaks as the
    paper does). In l1 the values of largest |w| go as far as they can, one after the other.

    Args:
        points: ``(…, M, D)`` in the box; normal: ``(M, D)``; gain: ``(…, M)``.

    Returns:
        δ, shaped like ``points``.
    """
    # Only the ratio of gain to normal matters; scaled, squares of tiny gradients do not vanish.
    scale = normal.abs().amax(1).clamp_min(TINY)
    normal, gain = normal / scale[:, None], gain / scale
    weight = normal.abs()
    side = normal.sign() * gain.sign()[..., None]
    room = torch.where(side > 0, threat.high - points, points - threat.low)
    gain = gain.abs()
    if threat.norm == "l1":
        order = weight.argsort(1, descending=True).expand_as(points)
        weight = weight.expand_as(points).gather(-1, order)
        most = weight * room.gather(-1, order)
        used = torch.minimum((gain[..., None] - (most.cumsum(-1) - most)).clamp_min(0), most)
        return torch.zeros_like(points).scatter_(-1, order, used / weight.clamp_min(TINY)) * side
    pull = weight if threat.norm == "linf" else weight * weight
    rate = (gain / pull.sum(1).clamp_min(TINY)).clamp_max(torch.finfo(points.dtype).max)
    enough = 16 * torch.finfo(points.dtype).eps * gain
    moved = room
    for _ in range(points.shape[-1] + 1):
        moved = torch.minimum(rate[..., None] if threat.norm == "linf" else rate[..., None] * weight, room)
        short = gain - (moved * weight).sum(-1)
        left = ((moved < room) * pull).sum(-1)
        going = (short > enough) & (left > 0)
        if not going.any():
            break
        rate = torch.where(going, rate + short / left, rate)
    return moved * side


# -- the shortest perturbation ----------------------------------------------------------------------------------


class Shortest:
    """The shortest adversarial perturbation seen for each example.

    Args:
        x: ``(N, …)``; y: int64 ``(N,)``.
        rescore: on a randomised defense a point counts that fools most of so many fresh draws.
        stop_inside: whether a point inside the ball is short enough.
    """

    def __init__(self, target: Target, x: Tensor, y: Tensor, *, rescore: int, stop_inside: bool) -> None:
        self.target, self.x, self.y, self.rescore, self.stop_inside = target, x, y, rescore, stop_inside
        self.points = x.clone()
        #: Logits ``(N, K)`` of ``points``, once there are any.
        self.logits: Tensor | None = None
        #: Of ``points``; infinite where none is adversarial yet.
        self.distance = x.new_full((len(x),), torch.inf)

    def offer(self, points: Tensor, logits: Tensor, rows: Tensor) -> Tensor:
        """Offer ``points (M, …)`` of the examples ``rows``, each at most once; returns which are adversarial."""
        hit = self.target.fooled(logits, points, self.y[rows], rows)
        self.keep(points, logits, rows, hit)
        return hit

    def keep(self, points: Tensor, logits: Tensor, rows: Tensor, hit: Tensor) -> None:
        """Keep the ``points (M, …)`` that are adversarial (``hit``) and shorter than what there is."""
        target = self.target
        if self.logits is None:
            self.logits = logits.new_zeros(len(self.x), logits.shape[1])
        if not hit.any():
            return
        distance = length(points - self.x[rows], target.ball.norm)
        better = hit & (distance < self.distance[rows])
        if target.randomized and better.any():
            asked = rows[better]
            better[better.clone()] = target.is_adversarial(points[better], self.y[asked], asked, draws=self.rescore)
        where = rows[better]
        self.distance[where] = distance[better]
        self.points[where] = points[better]
        self.logits[where] = logits[better]

    def done(self, rows: Tensor) -> Tensor:
        """Bool ``(M,)``: which examples need no shorter point, having one inside the ball, or x itself.

        None on a randomised defense, where the whole budget goes into points that fool more often.
        """
        enough = self.target.ball.eps if self.stop_inside else 0.0
        return (self.distance[rows] <= enough) & (not self.target.randomized)

    def shorten(self, goal: Goal, below: Tensor, rows: Tensor, steps: int) -> None:
        """Pull the points of the examples ``rows`` back towards x by ``steps`` secant steps, a forward pass each.

        The "final search" of Croce & Hein 2020: between the innermost point on the segment that fools and the
        outermost that does not, the margin is taken as linear. Nothing happens on a randomised defense.

        Args:
            goal: of all examples; below: ``(N,)``, its margin at x.
        """
        rows = rows[self.distance[rows].isfinite() & ~self.done(rows)]
        if self.target.randomized or self.logits is None or not len(rows):
            return
        goal, x, below = goal.at(rows), self.x[rows], below[rows]
        delta, above = self.points[rows] - x, goal.margin(self.logits[rows])
        inner, outer = torch.zeros_like(below), torch.ones_like(below)
        for _ in range(steps):
            share = (above / (above - below)).nan_to_num(nan=0.5).clamp(0, 1)
            fraction = outer - _AIM * share * (outer - inner)
            points = x + per_example(fraction, x) * delta
            logits = self.target.logits(points, rows)
            hit = self.offer(points, logits, rows)
            value = goal.margin(logits)
            outer, above = torch.where(hit, fraction, outer), torch.where(hit, value, above)
            inner, below = torch.where(hit, inner, fraction), torch.where(hit, below, value)

    def result(self, last: Tensor) -> Tensor:
        """The shortest points, moved onto the ball where they lie outside; ``last`` where there is none.

        On a randomised defense a point at the boundary fools half of the time: it is compared with the same
        perturbation stretched to the surface of the ball, and with ``last``.
        """
        threat, found = self.target.ball, self.distance.isfinite()
        points = torch.where(per_example(found, self.x), self.points, last)
        result = threat.project_(points.clone(), self.x)
        if not self.target.randomized:
            return result
        size = length(points - self.x, threat.norm).clamp_min(TINY)
        stretched = self.x + per_example((threat.eps / size).clamp_max(1e6), self.x) * (points - self.x)
        everyone = torch.arange(len(result), device=result.device)
        best = Best(result)
        for candidate in (result, threat.project_(stretched, self.x), threat.project_(last.clone(), self.x)):
            best.update(candidate, strength(self.target, candidate, self.y, everyone, self.rescore), everyone)
        return best.x
