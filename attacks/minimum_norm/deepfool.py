"""DeepFool: step after step to the nearest linearised boundary (Moosavi-Dezfooli, Fawzi & Frossard 2016)."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from attacks.toolkit.active import take
from attacks.toolkit.estimators import EstimatorLike, as_estimator, estimator_prepares, prepare_estimator
from attacks.toolkit.hyperplanes import DUAL, TINY, NearestBoundary, Plane, Shortest
from attacks.toolkit.losses import Goal, margin
from attacks.toolkit.projections import flat_length, per_example, steepest
from attacks.toolkit.selection import ranked_classes
from bench.contracts.attack import attack
from bench.contracts.target import Target

#: Added to every step's length, as in the authors' code, so that a point on the boundary crosses it.
_NUDGE = 1e-4


@attack(
    "deepfool",
    version=1,
    knowledge="gradient",
    norms=("linf", "l2"),
    minimum_norm=True,
    paper="Moosavi-Dezfooli et al. 2016, DeepFool: a Simple and Accurate Method to Fool Deep Neural Networks",
    url="https://arxiv.org/abs/1511.04599",
    prepare=prepare_estimator,
    prepares=estimator_prepares,
)
def deepfool(
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    steps: Annotated[int, Ge(1)] = 50,
    overshoot: Annotated[float, Ge(0)] = 0.02,
    candidates: Annotated[int, Ge(1)] = 9,
    shortlist: Annotated[int, Ge(0)] = 3,
    search: Annotated[int, Ge(0)] = 3,
    estimator: EstimatorLike = "exact",
    rescore: Annotated[int, Ge(1)] = 16,
    stop_inside: bool = True,
) -> Tensor:
    """DeepFool: steps onto the nearest linearised boundary until one is crossed (Moosavi-Dezfooli et al. 2016).

    A step goes |f_j|/‖∇f_j‖₂ + 1e-4 along ∇f_j/‖∇f_j‖₂ (l2) or |f_j|/‖∇f_j‖₁ + 1e-4 along sign ∇f_j (linf), f_j =
    z_j - z_y of the class whose boundary is nearest, and is then clipped to the box. An example leaves the batch when
    it is fooled.

    Where this differs from the paper: the overshoot applies to every step instead of their sum; from the second step
    on only the ``shortlist`` classes nearest at x are differentiated (on an adversarially trained digits CNN 3 of 9
    give the same distances as all, from half the gradients); and the point is drawn back towards x at the end
    (``search``), which there takes 7 % (l2) or 3 % (linf) off the median distance for three forward passes.

    Args:
        target: gradient knowledge.
        x: ``(N, …)`` in the box; y: int64 ``(N,)``.
        steps: gradient evaluations at most.
        overshoot: share by which a step goes beyond the linearised boundary.
        candidates: classes considered, those ranked highest at x after y (at the price of a forward pass where there
            are more); one backward pass each in the first step.
        shortlist: of these, how many are considered from the second step on; 0: all.
        search: secant steps between x and the point that fools, at the very end, a forward pass each.
        estimator: how to get the gradient (``attacks.toolkit.estimators``).
        rescore: draws by which a point is confirmed on a randomised defense.
        stop_inside: no search for an example whose point is inside the ball.

    Returns:
        x_adv, shaped like x: the point that fools, moved onto the ball where it is farther; the last point where
        none fools.
    """
    goal, estimator = Goal(margin, y), as_estimator(estimator)
    best = Shortest(target, x, y, rescore=rescore, stop_inside=stop_inside)
    everyone = rows = torch.arange(len(x), device=x.device)
    boundary = _boundaries(target, x, y, candidates, shortlist)
    x_k, last, clean = x, x.clone(), None
    for _ in range(steps):
        plane, boundary = boundary.linearise(estimator, target, x_k, rows)
        logits = plane.logits if estimator.true_forward else target.logits(x_k, rows)
        clean = logits if clean is None else clean
        best.offer(x_k, logits, rows)
        going = best.distance[rows].isinf()
        last[rows] = x_k
        rows, x_k, boundary, plane = take(going, rows, x_k, boundary, plane)
        if not len(rows):
            break
        x_k = _step(x_k, plane, overshoot, target)
    if len(rows):
        best.offer(x_k, target.logits(x_k, rows), rows)
        last[rows] = x_k
    assert clean is not None
    best.shorten(goal, goal.margin(clean), everyone, search)
    return best.result(last)


def _boundaries(target: Target, x: Tensor, y: Tensor, candidates: int, shortlist: int) -> NearestBoundary:
    if candidates < target.num_classes - 1:
        classes = ranked_classes(target.logits(x), y, candidates).T
    else:
        classes = torch.arange(target.num_classes - 1, device=y.device).expand(len(y), -1)
        classes = classes + (classes >= y[:, None]).long()  # all but y
    return NearestBoundary.of(y, classes, target.num_classes, x.dtype, shortlist)


def _step(x_k: Tensor, plane: Plane, overshoot: float, target: Target) -> Tensor:
    threat = target.ball
    size = flat_length(plane.normal, DUAL[threat.norm])
    far = (1 + overshoot) * (plane.value.abs() / size.clamp_min(TINY) + _NUDGE)
    # A vanishing gradient says nothing about the distance: no step then leads farther than the box.
    far = far.clamp_max((threat.high - threat.low) * x_k[0].numel())
    direction = steepest(plane.normal.view_as(x_k), threat.norm)
    return (x_k + per_example(far, x_k) * direction).clamp_(threat.low, threat.high)
