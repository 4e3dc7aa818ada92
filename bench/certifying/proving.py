"""What can be proven of one example: by intervals, relaxation, its optimisation, then branch and bound."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.certifying.branching import branch_and_bound
from bench.certifying.limits import box, by_intervals, by_relaxation, refined
from bench.certifying.network import Layered
from bench.certifying.optimising import optimised
from bench.certifying.relaxation import Limits, Relaxed, lower_bound
from bench.contracts.defense import Defense
from bench.contracts.errors import NotApplicable
from bench.contracts.threat import Lp
from bench.storing.certified import Method

#: How far, in logits, the right class has to stay above every other. Bounds hold of the network in exact arithmetic;
#: in float32 its logits differ by less than a quarter of this, which is measured: see :func:`check_precision`.
TOLERANCE = 1e-3
#: Steps of optimised bounds: of the margins, and of the limits of units.
_MARGINS, _LIMITS = 20, 4
#: A bound so many times as far below zero as the margin at x is above it is not lifted, per second of the limit.
_HOPE = 0.1


@dataclass(frozen=True)
class Proven:
    """The best lower bound of the smallest margin in the ball, what gave it, and whether it is above the tolerance."""

    certified: bool
    method: Method
    bound: float
    parts: int = 0


def prove(layered: Layered, x: Tensor, y: int, threat: Lp, seconds: float) -> Proven:
    """Prove that no input that the judge allows is given another class than ``y``, or say how far that came.

    Args:
        x: one input, ``(*shape)``.
        threat: an linf ball; the judge's tolerance is added to its radius.
        seconds: of processor time, about: a step that has begun is ended.
    """
    deadline = time.process_time() + seconds
    ball = box(x, threat.eps + threat.tolerance, threat.low, threat.high)
    limits = by_intervals(layered, ball)
    margins = torch.cat([-torch.eye(layered.classes, dtype=torch.float64)[:, :y],
                         -torch.eye(layered.classes, dtype=torch.float64)[:, y + 1 :]], 1)  # fmt: skip
    margins[y] = 1.0
    last = len(layered.slopes)
    # Of the logits' own limits: the same as a relaxation of nothing.
    bound = lower_bound(layered, last, margins, limits, Relaxed(layered, limits)).value
    if float(bound.min()) > TOLERANCE:
        return Proven(True, "interval", float(bound.min()))
    limits = by_relaxation(layered, limits)
    best = torch.maximum(bound, lower_bound(layered, last, margins, limits, Relaxed(layered, limits)).value)
    if float(best.min()) > TOLERANCE or not last:
        return Proven(float(best.min()) > TOLERANCE, "relaxation", float(best.min()))
    best = torch.maximum(best, _improved(layered, margins, limits))
    if float(best.min()) > TOLERANCE:
        return Proven(True, "optimised", float(best.min()))
    logits = layered.network.at(x[None]).logits
    if float(best.min()) < -_HOPE * seconds * float((margins.T @ logits).min()):
        return Proven(False, "optimised", float(best.min()))

    def bounded(k: int, rows: Tensor, before: Limits) -> Tensor:
        return optimised(layered, k, rows, before, steps=_LIMITS, enough=None).value

    limits = refined(layered, limits, bounded, deadline)
    best = torch.maximum(best, _improved(layered, margins, limits))
    if float(best.min()) > TOLERANCE:
        return Proven(True, "optimised", float(best.min()))
    parts = 0
    for place in best.argsort().tolist():  # the hardest class first: where that stays open the rest need not be asked
        if float(best[place]) > TOLERANCE:
            break
        proof = branch_and_bound(layered, margins[:, place], limits, TOLERANCE, deadline - time.process_time())
        best[place] = max(float(best[place]), proof.value)
        parts += proof.parts
        if not proof.proven:
            break
    return Proven(float(best.min()) > TOLERANCE, "branch and bound", float(best.min()), parts)


def _improved(layered: Layered, margins: Tensor, limits: Limits) -> Tensor:
    return optimised(layered, len(layered.slopes), margins, limits, steps=_MARGINS, enough=TOLERANCE).value


@torch.no_grad()
def check_precision(defense: Defense, layered: Layered, x: Tensor, threat: Lp) -> float:
    """The largest difference between a defense's logits and those of the network that bounds are of.

    Compared at ``x (N, …)`` and at random corners of the balls around them.

    Raises:
        NotApplicable: when it is a quarter of the tolerance or more.
    """
    draw = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, x.shape, generator=draw).to(x) * 2 - 1
    corners = (x + threat.eps * signs).clamp(threat.low, threat.high)
    points = torch.cat([x, corners])
    own = torch.cat([defense(point[None]) for point in points]).double().cpu()
    largest = float((own - torch.stack([layered.at(point[None]) for point in points])).abs().max())  # NaN stays NaN
    if not largest < TOLERANCE / 4:
        raise NotApplicable(
            f"the defense's logits differ by {largest:.1e} from those of the network in float64; "
            f"certificates allow for {TOLERANCE / 4:.1e}"
        )
    return largest
