"""ARC: the attack on random ensembles, one member after the other (Dbouk & Shanbhag 2022)."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from attacks.toolkit.common_draws import common_draws
from attacks.toolkit.estimators import Estimator, EstimatorLike, as_estimator, estimator_prepares, prepare_estimator
from attacks.toolkit.hyperplanes import DUAL, TINY, Boundary, GoalBoundary, NearestBoundary
from attacks.toolkit.losses import Goal, margin
from attacks.toolkit.projections import flat_length, length, per_example, steepest
from attacks.toolkit.selection import Best, ranked_classes, strength
from bench.contracts.attack import attack
from bench.contracts.target import Target

#: Halvings of the interval in which β is looked for.
_HALVINGS = 16


@attack(
    "arc",
    version=1,
    knowledge="gradient",
    norms=("linf", "l2"),
    targeted=True,
    paper="Dbouk & Shanbhag 2022, Adversarial Vulnerability of Randomized Ensembles",
    url="https://arxiv.org/abs/2206.06737",
    prepare=prepare_estimator,
    prepares=estimator_prepares,
)
def arc(
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    steps: Annotated[int, Ge(1)] = 20,
    states: Annotated[int, Ge(1)] = 8,
    step_size: Annotated[float, Gt(0)] = 1.0,
    beyond: Annotated[float, Gt(0)] = 0.05,
    classes: Annotated[int, Ge(1)] = 4,
    restarts: Annotated[int, Ge(1)] = 1,
    estimator: EstimatorLike = "exact",
    rescore: Annotated[int, Ge(1)] = 30,
) -> Tensor:
    """ARC: cross the nearest boundary of one random state after the other, without giving up one crossed before.

    For a defense that is one of a few networks, drawn anew for each pass, where the mean gradient may lead to no point
    that fools several. Each step looks for a perturbation v of length η = ``step_size``·eps around the present point.
    For one state after the other the nearest boundary is linearised at v: with unit direction g and the distances ζ
    from the centre and d from v, v becomes η·(v + β·g)/‖v + β·g‖ with the least β that ends ρ beyond this boundary
    (β = η where ζ ≥ η), and is kept where the share of states that are right does not rise.

    The states are those of ``states`` random draws per restart, which the attack can repeat. Where the authors differ:
    they are given the members with their probabilities and begin with the likeliest, where the order here is random;
    their β = η·d/(η - ζ) + ρ is enough whatever the angle of v and g, and more than needed at most; they lead a member
    that is wrong already to its next boundary, where such a member asks for nothing here.

    Args:
        target: gradient knowledge.
        x: ``(N, …)`` in the box; y: int64 ``(N,)``.
        steps: K.
        states: random draws m; a step takes m·(1 + m) forward passes and m·``classes`` backward ones. One on a
            deterministic defense.
        step_size: η in units of eps.
        beyond: ρ in units of eps, by how much each boundary is crossed.
        classes: of these many classes, ranked highest at x, the nearest boundary is taken.
        restarts: runs, the first from x, the others from random points; each on draws of its own.
        estimator: how to get the gradient (``attacks.toolkit.estimators``).
        rescore: draws on which the runs' points are compared, on a randomised defense.

    Returns:
        x_adv, shaped like x.
    """
    index = torch.arange(len(x), device=x.device)
    draws = rescore if target.randomized else 1
    best = Best(x)
    best.update(x, strength(target, x, y, index, draws), index)
    if target.towards is None:
        near = ranked_classes(target.logits(x, draws=draws), y, classes).T
        boundary: Boundary = NearestBoundary.of(y, near, target.num_classes, x.dtype, 0)
    else:
        boundary = GoalBoundary(Goal.of(target, margin, y))
    for restart in range(restarts):
        start = target.threat.sample(x, target.generator) if restart else x
        tokens = target.rand(states if target.randomized else 1, like=x).tolist()
        run = _Run(target, as_estimator(estimator), boundary, x, y, tokens, step_size, beyond)
        point, right = start.clone(), run.right(start, index)
        for _ in range(steps):
            # Of a randomised defense all rows go on to the end: a row's draws depend on its place in the batch.
            rows = index if target.randomized else index[right > 0]
            if not len(rows):
                break
            point[rows], right[rows] = run.step(point[rows], right[rows], rows)
        best.update(point, strength(target, point, y, index, draws), index)
    return best.x


class _Run:
    """One run on fixed states."""

    def __init__(
        self, target: Target, estimator: Estimator, boundary: Boundary, x: Tensor, y: Tensor, tokens: list[float],
        step_size: float, beyond: float,
    ) -> None:  # fmt: skip
        self.target, self.estimator, self.boundary = target, estimator, boundary
        self.x, self.y, self.tokens = x, y, tokens
        self.radius, self.beyond = step_size * target.ball.eps, beyond * target.ball.eps

    def right(self, points: Tensor, index: Tensor) -> Tensor:
        """In how many states the defense holds at ``points (M, …)`` of the examples ``index``, ``(M,)``."""
        count = torch.zeros(len(points), device=points.device)
        for token in self.tokens:
            with common_draws(self.target, token):
                logits = self.target.logits(points, index)
                count += ~self.target.fooled(logits, points, self.y[index], index)
        return count

    def step(self, point: Tensor, right: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """The next points of the examples ``index``, ``(M, …)``, and in how many states the defense holds there."""
        x, boundary = self.x[index], self.boundary.at(index)
        threat, norm = self.target.ball, self.target.ball.norm
        local, held = torch.zeros_like(point), right
        order = self.target.rand(len(self.tokens), like=point).argsort().tolist()
        for number in order:
            with common_draws(self.target, self.tokens[number]):
                plane, _ = boundary.linearise(self.estimator, self.target, point + local, index)
            dual = flat_length(plane.normal, DUAL[norm]).clamp_min(TINY)
            away = -plane.value / dual
            zeta = away + (plane.normal * local.flatten(1)).sum(1) / dual
            along = steepest(plane.normal, norm).view_as(point)
            moved = self._across(local, along, plane.normal / dual[:, None], zeta)
            now = self.right(threat.project_(point + moved, x), index)
            kept = (away > 0) & (now <= held)
            local, held = torch.where(per_example(kept, local), moved, local), torch.where(kept, now, held)
        return threat.project_(point + local, x), held

    def _across(self, local: Tensor, along: Tensor, normal: Tensor, zeta: Tensor) -> Tensor:
        """η·(v + β·g)/‖v + β·g‖ with the least β for which it lies ρ beyond the plane at distance ``zeta (M,)``.

        v is ``local``, g ``along``, and ``normal (M, D)`` of unit dual norm. β = η where the plane is out of reach.
        """
        norm = self.target.ball.norm

        def scaled(beta: Tensor) -> Tensor:
            moved = local + per_example(beta, local) * along
            return moved * per_example(self.radius / length(moved, norm).clamp_min(TINY), moved)

        # From this β on it is crossed, since ‖v + β·g‖ is at most η + β.
        wanted = (zeta + self.beyond).clamp_max(zeta + 0.99 * (self.radius - zeta))
        depth = (normal * local.flatten(1)).sum(1)
        high = self.radius * (wanted - depth) / (self.radius - wanted).clamp_min(TINY)
        low, high = torch.zeros_like(high), high.clamp_min(0)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            crossed = (normal * scaled(middle).flatten(1)).sum(1) >= wanted
            low, high = torch.where(crossed, low, middle), torch.where(crossed, middle, high)
        return scaled(torch.where(zeta < self.radius, high, self.radius))
