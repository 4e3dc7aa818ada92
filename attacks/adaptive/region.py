"""Search among the pieces of a piecewise linear network, where climbs of the gradient have ended: ``region``."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from attacks.adaptive.cascade import cascade
from attacks.gradient.pgd import Ascent
from attacks.toolkit.estimators import as_estimator
from attacks.toolkit.losses import Goal, margin
from attacks.toolkit.piecewise import Piece, PiecewiseLinear
from attacks.toolkit.programs import Neighbourhood, best_nearby, highs, undecided
from attacks.toolkit.selection import ranked_classes
from bench.contracts.attack import attack
from bench.contracts.errors import NotApplicable
from bench.contracts.target import Target

#: A climb of programs ends when one gains less than this, in logits, or after so many.
_GAIN, _PIVOTS = 1e-5, 20
#: It is given up where so many times its last gain would not bring it into the beam.
_HOPE = 4.0
#: Points that a hop climbs from at once, steps of these climbs, their first step in units of eps.
_KICKS, _CLIMB, _STEP = 32, 20, 0.5
#: Share of the values that a hop draws anew, from and to.
_REDRAWN = (0.1, 0.8)
#: Of so many rounds one is a mixed-integer program: its radius in units of eps and its free units, from and to.
_EVERY, _RADIUS, _FREE, _NODES = 20, (0.2, 2.0), (10, 60), 20
#: Seconds that one such program may take.
_PATIENCE = 12.0
#: A network of so many units, of which so many may change in the ball, is settled by one program
#: per class, of so many nodes at most.
_SMALL, _SETTLED, _ENOUGH = 1000, 40, 100_000


@attack(
    "region",
    version=2,
    knowledge="gradient",
    norms=("linf",),
    paper="this project; after Zhang et al. 2022, A Branch and Bound Framework for Stronger Adversarial Attacks of "
    "ReLU Networks",
    url="https://proceedings.mlr.press/v162/zhang22ae.html",
)
def region(
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    rounds: Annotated[int, Ge(0)] = 2000,
    beam: Annotated[int, Ge(1)] = 6,
    targets: Annotated[int, Ge(1)] = 9,
    seconds: Annotated[float, Gt(0)] = 500.0,
) -> Tensor:
    """Local search among the linear pieces of a network, from where ``cascade`` has ended.

    For networks that are piecewise linear: ReLU, leaky ReLU, max-pooling, clamping between affine layers. Elsewhere it
    is not applicable. A point's piece is given by the pattern of its active units; in the piece the network is affine,
    and its best point is a linear program. Where that holds a unit at zero that it would gain by turning, measured by
    the price of the condition plus what the unit itself passes on, the unit is turned; so on, until nothing is gained:
    a maximum among all neighbouring pieces, which a gradient does not reach.

    On the examples still standing: (1) climbs by gradient towards every class, the nearest first, fill a ``beam``; (2)
    in rounds, its points are improved by programs, then left by drawing some of their values anew, and climbed from, by
    gradient and then by programs, the best most often; (3) every twentieth round instead frees some units within a
    radius, chosen at random by what they could change, by a mixed-integer program that finds the best of all their
    patterns. Where few units can change in the ball, and the network is small, one such program per class settles the
    example instead. (Zhang et al. 2022 search from above, by bounds of patterns; this is a search from below.)

    Runs on one core, in float64, whatever the device; what it finds is confirmed by the defense itself. The rounds are
    its budget; ``seconds`` only a limit, with a note when it is reached, since rows then depend on the machine.

    Args:
        target: gradient knowledge.
        x: ``(N, …)`` in the box; y: int64 ``(N,)``.
        rounds: of (2) and (3), per example; one takes about a fifth of a second on networks of some thousand units.
        beam: points kept.
        targets: classes of (1), those ranked highest at x.
        seconds: of processor time that an example may take after ``cascade``.

    Returns:
        x_adv, shaped like x.

    Raises:
        NotApplicable: where the network is not known to be piecewise linear, is randomised or has a detector, or
            where HiGHS is missing (``pip install 'worst-case-bench[region]'``).
    """
    defense = target.defense
    highs()
    if target.randomized or target.rejects:
        what = "randomised" if target.randomized else "guarded by a detector"
        raise NotApplicable(f"region searches the pieces of a deterministic network; this one is {what}")
    if not len(x):
        return x.clone()
    network = PiecewiseLinear(defense, x[:1])
    found = cascade(target, x, y)
    seeds = torch.randint(2**62, (len(x),), generator=target.generator).tolist()
    logits = target.logits(found)
    standing = (~target.fooled(logits, found, y)).nonzero().flatten()
    for i in standing.tolist():
        search = _Search(target, network, x, y, i, beam, torch.Generator().manual_seed(seeds[i]))
        search.run(found[i : i + 1], logits[i : i + 1], rounds, targets, seconds)
        found[i] = search.best[0]
        if search.late:
            target.counts.notes.add(f"region: an example ran into its limit of {seconds:g} s")
    return found


@dataclass(order=True)
class _Peak:
    """A point that climbs of the gradient, or (``final``) programs, improve no more, by its margin towards ``t``."""

    value: float
    t: int
    piece: Piece = field(compare=False)
    final: bool = True


class _Search:
    """The search for one example."""

    def __init__(
        self, target: Target, network: PiecewiseLinear, x: Tensor, y: Tensor, i: int, beam: int, random: torch.Generator
    ) -> None:
        self.target, self.network, self.random, self.width = target, network, random, beam
        self.x, self.y, self.index = x[i : i + 1], y[i : i + 1], torch.tensor([i], device=x.device)
        ball = target.ball
        clean = self.x.detach().cpu().double().flatten()
        self.lo, self.hi = (clean - ball.eps).clamp_min(ball.low), (clean + ball.eps).clamp_max(ball.high)
        #: Best first.
        self.beam = list[_Peak]()
        self.best, self.score, self.done, self.late = self.x, -torch.inf, False, False

    def run(self, start: Tensor, logits: Tensor, rounds: int, targets: int, seconds: float) -> None:
        """Search from ``start (1, …)`` with its ``logits``."""
        self.best, self.score, self.deadline = start, float(margin(logits, self.y)), time.process_time() + seconds
        classes = ranked_classes(logits, self.y, targets)[:, 0].tolist()
        if self._settle(start, classes):
            return
        for t in classes:
            self._climb(torch.cat([start, self._kicked(start)]), t, pivot=False)
            if self._over():
                return
        for number in range(rounds):
            # Half of the rounds leave the best peak, a quarter the second, …
            rank = min(_trailing_zeros(number + 1), len(self.beam) - 1)
            peak = self.beam[rank]
            if not peak.final:
                self.beam.remove(peak)
                self._pivot(peak.piece.x, peak.t)
            elif number % _EVERY == _EVERY - 1:
                self._free(peak)
            else:
                self._climb(self._kicked(peak.piece.x.to(self.x)), peak.t)
            if self._over():
                return

    def _settle(self, start: Tensor, classes: list[int]) -> bool:
        """Whether programs over all patterns in the ball could decide the example, one towards every class."""
        if len(self.network.slopes) > _SMALL:
            return False
        piece = self.network.at(self._inside(start))
        free = undecided(self._near(piece, self._weights(classes[0])))
        if len(free) > _SETTLED:
            return False
        for t in classes:
            near = self._near(piece, self._weights(t))
            found = best_nearby(near, free, nodes=_ENOUGH, seconds=min(_PATIENCE, self._left()), exact=True)
            if not found.in_time:
                return False
            if self._offer(found.points[-1].view(self.x.shape)):
                return True
        return len(classes) == self.target.num_classes - 1

    def _over(self) -> bool:
        self.late = self.late or (not self.done and self._left() <= 0)
        return self.done or self.late

    def _left(self) -> float:
        return self.deadline - time.process_time()

    def _kicked(self, point: Tensor) -> Tensor:
        """``point (1, …)`` many times, each with a share of its values drawn anew."""
        size = (_KICKS, *point.shape[1:])
        low, high = torch.tensor(_REDRAWN).log()
        share = (low + (high - low) * torch.rand(_KICKS, generator=self.random)).exp()
        chosen = torch.rand(size, generator=self.random) < share.view(-1, *[1] * (point.ndim - 1))
        lower, upper = self.lo.view(point.shape), self.hi.view(point.shape)
        fresh = torch.where(torch.rand(size, generator=self.random) < 0.5, lower, upper)
        return torch.where(chosen.to(point.device), fresh.to(point), point)

    def _climb(self, points: Tensor, t: int, pivot: bool = True) -> None:
        """Climb towards class ``t`` from ``points (M, …)`` by gradient, and from the best of the ends by programs."""
        rows = len(points)
        x, y = self.x.expand(rows, *self.x.shape[1:]), self.y.expand(rows)
        goal = Goal(margin, y, torch.full_like(y, t))
        ascent = Ascent(as_estimator("exact"), _CLIMB, _STEP, "linear")
        points = self.target.threat.project_(points.clone(), x)
        run, _ = ascent.run(self.target, x, points, goal, self.index.expand(rows))
        ends = run.x[run.score.argmax()][None]
        if self._offer(ends):
            return
        if pivot:
            self._pivot(ends, t)
        else:
            piece = self.network.at(self._inside(ends))
            self._keep(_Peak(float(self._weights(t) @ piece.logits), t, piece, final=False))

    def _offer(self, point: Tensor) -> bool:
        """Keep ``point (1, …)`` if it is the best so far; whether it fools the defense."""
        point = self.target.threat.project_(point.to(self.x), self.x)
        logits = self.target.logits(point, self.index)
        self.done = self.done or bool(self.target.fooled(logits, point, self.y, self.index))
        score = float(margin(logits, self.y))
        if score > self.score or self.done:
            self.best, self.score = point, score
        return self.done

    def _pivot(self, point: Tensor, t: int) -> None:
        """From ``point (1, …)`` through pieces, each with a better best point, to a peak for the beam."""
        weights = self._weights(t)
        piece = self.network.at(self._inside(point))
        value = float(weights @ piece.logits)
        for _ in range(_PIVOTS):
            near = self._near(piece, weights)
            found = best_nearby(near, torch.zeros(0, dtype=torch.int64), nodes=1, seconds=_PATIENCE)
            if not len(found.points):
                break
            at = self.network.at(self._inside(found.points[-1]))
            gained = float(weights @ at.logits) - value
            if gained < _GAIN:
                break
            if self._offer(at.x):
                return
            value, active = value + gained, piece.active.clone()
            if self.beam and value + _HOPE * gained < self.beam[-1].value:
                return
            active[found.binding] = ~active[found.binding]
            piece = Piece(at.x, at.logits, at.z, active)
            if self._left() <= 0:
                break
        self._keep(_Peak(value, t, piece))

    def _keep(self, peak: _Peak) -> None:
        if all(peak.t != other.t or abs(peak.value - other.value) > _GAIN for other in self.beam):
            self.beam = sorted([*self.beam, peak], reverse=True)[: self.width]

    def _free(self, peak: _Peak) -> None:
        """Leave a peak by a mixed-integer program over the patterns of some of the units."""
        low, high = torch.tensor([_RADIUS, _FREE], dtype=torch.float64).log().T
        radius, count = (low + (high - low) * torch.rand(2, generator=self.random).double()).exp().tolist()
        weights = self._weights(peak.t)
        piece = self.network.at(peak.piece.x)
        near = self._near(piece, weights, radius * self.target.ball.eps)
        change = near.gain.abs() * near.reach().clamp_min(0)
        change = change * torch.randn(len(change), generator=self.random).double().exp()
        free = change.argsort(descending=True)[: round(count)]
        free = free[change[free] > 0].sort().values
        found = best_nearby(near, free, nodes=_NODES, seconds=_PATIENCE)
        for point in found.points:
            if self._offer(point.view(self.x.shape)):
                return
        if len(found.points):
            values = torch.stack([weights @ self.network.at(point).logits for point in found.points])
            self._climb(found.points[values.argmax()].view(self.x.shape).to(self.x), peak.t)

    def _near(self, piece: Piece, weights: Tensor, radius: float = torch.inf) -> Neighbourhood:
        point = piece.x.flatten()
        lo, hi = torch.maximum(self.lo, point - radius), torch.minimum(self.hi, point + radius)
        gain = self.network.influence(piece, weights)
        return Neighbourhood(self.network, piece, self.network.affine(piece.active), lo, hi, weights, gain)

    def _inside(self, point: Tensor) -> Tensor:
        flat = point.detach().cpu().double().flatten()
        return torch.minimum(torch.maximum(flat, self.lo), self.hi).view(self.x.shape)

    def _weights(self, t: int) -> Tensor:
        weights = torch.zeros(self.target.num_classes, dtype=torch.float64)
        weights[t], weights[int(self.y)] = 1.0, -1.0
        return weights


def _trailing_zeros(number: int) -> int:
    return (number & -number).bit_length() - 1
