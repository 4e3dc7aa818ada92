"""A climb from given points by any of several step rules: the points it leads to, for the caller to compare."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from attacks.toolkit.active import Active
from attacks.toolkit.joint import merit
from attacks.toolkit.losses import Goal
from attacks.toolkit.paths import Estimator
from attacks.toolkit.projections import l1_unit, per_example, steepest
from attacks.toolkit.selection import Best
from bench.contracts.target import Target

#: How a step is made of the gradients so far.
Rule = Literal["pgd", "momentum", "adam", "conjugate"]
RULES: tuple[Rule, ...] = get_args(Rule)
#: μ of momentum (Dong et al. 2018); β₁ and β₂ of Adam (Kingma & Ba 2015).
_MOMENTUM, _BETAS = 0.75, (0.9, 0.99)


@dataclass
class _Path(Active):
    """The rows still climbing: where they are and what their next step needs to know."""

    rows: Tensor
    index: Tensor
    x: Tensor
    point: Tensor
    goal: Goal
    first: Tensor
    second: Tensor


def ascend(
    target: Target, x: Tensor, start: Tensor, goal: Goal, index: Tensor, estimator: Estimator, rule: Rule, steps: int,
    first: float = 1.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Climb ``goal`` with steps that fall from ``first``·eps to zero along a cosine.

    ``pgd`` steps along the gradient, ``momentum`` along the decayed sum of L1-normalised ones (Dong et al. 2018),
    ``adam`` along m/√v of Kingma & Ba (2015), ``conjugate`` along g + β·d, d the step before and β by Hestenes and
    Stiefel in the form of Yamamura et al. 2022 (ACG), not negative. Each is then brought to the steepest direction of
    the norm, except Adam's in linf, whose own lengths are kept.

    Args:
        x, start: ``(M, …)``, the examples ``index (M,)`` and where to begin.
        goal: of these rows.

    Returns:
        Two points for each row, shaped like x: the one of highest merit on the way, as far as a look at each told, and
        the last. On a deterministic defense a row stops where it is fooled, and both are that point.
    """
    stop_early = estimator.true_forward and not target.randomized
    best, last = Best(start), start.clone()
    rows = torch.arange(len(x), device=x.device)
    path = _Path(rows, index, x, start.clone(), goal, torch.zeros_like(x), torch.zeros_like(x))
    for step in range(steps):
        at = estimator.evaluate(target, path.point, path.goal, path.index)
        best.update(path.point, merit(target, path.goal, at.logits, path.point, path.index, at.scores), path.rows)
        grad = at.grad
        if stop_early:
            fooled = target.fooled(at.logits, path.point, path.goal.y, path.index, at.scores)
            if fooled.any():
                where = path.rows[fooled]
                best.x[where], best.score[where], last[where] = path.point[fooled], torch.inf, path.point[fooled]
                path.keep(~fooled)
                grad = grad[~fooled]
                if not len(path.rows):
                    return best.x, last
        along = _step(rule, path, grad, step, target.ball.norm)
        size = first * target.ball.eps * 0.5 * (1 + math.cos(math.pi * step / steps))
        path.point = target.threat.project_(path.point + size * along, path.x)
    last[path.rows] = path.point
    return best.x, last


def _step(rule: Rule, path: _Path, grad: Tensor, step: int, norm: str) -> Tensor:
    """The next direction, of unit norm at most; keeps in ``path`` what the one after it needs."""
    if rule == "momentum":
        path.first = _MOMENTUM * path.first + l1_unit(grad)
        return steepest(path.first, norm)
    if rule == "adam":
        unit = l1_unit(grad)
        path.first = _BETAS[0] * path.first + (1 - _BETAS[0]) * unit
        path.second = _BETAS[1] * path.second + (1 - _BETAS[1]) * unit.square()
        mean, square = path.first / (1 - _BETAS[0] ** (step + 1)), path.second / (1 - _BETAS[1] ** (step + 1))
        along = mean / square.sqrt().clamp_min(1e-12)
        return along.clamp(-1, 1) if norm == "linf" else steepest(along, norm)
    if rule == "conjugate":
        # In units of the gradient's own length: ``first`` is the direction before, ``second`` the gradient before.
        unit = grad / per_example(grad.flatten(1).norm(dim=1).clamp_min(1e-30), grad)
        change = path.second - unit
        beta = (unit * change).flatten(1).sum(1) / (path.first * change).flatten(1).sum(1)
        beta = -beta.nan_to_num(0.0, 0.0, 0.0) if step else torch.zeros_like(beta)
        along = unit + per_example(beta.clamp(0, 1), unit) * path.first
        path.first, path.second = along, unit
        return steepest(along, norm)
    return steepest(grad, norm)
