"""Projections onto norm balls and steepest-ascent steps. Helpers that end in ``_`` work in place."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.errors import NotApplicable
from bench.target import Target
from bench.threat import ThreatModel


def per_example(values: Tensor, like: Tensor) -> Tensor:
    """Reshape ``(M,)`` so that it broadcasts against ``like (M, …)``."""
    return values.view(-1, *[1] * (like.ndim - 1))


def project_(x_adv: Tensor, x: Tensor, threat: ThreatModel) -> Tensor:
    """Project ``x_adv`` in place onto the ball around ``x`` intersected with the box; returns it.

    For linf and l2 only. In l2 the ball is projected onto first and the box after it: clipping towards an x that
    lies inside the box never lengthens the perturbation, so the result is feasible (not always the nearest
    feasible point).
    """
    if threat.norm == "linf":
        torch.clamp(x_adv, x - threat.eps, x + threat.eps, out=x_adv)
    elif threat.norm == "l2":
        delta = x_adv - x
        norm = delta.flatten(1).norm(dim=1).clamp_min(1e-12)
        x_adv.copy_(x + delta * per_example((threat.eps / norm).clamp_max(1.0), delta))
    else:
        raise NotApplicable(f"projection onto {threat.norm} balls is not available (linf, l2)")
    return x_adv.clamp_(threat.low, threat.high)


def steepest(grad: Tensor, norm: str) -> Tensor:
    """The direction of unit norm along which the linearised loss rises fastest: sign (linf), g/‖g‖₂ (l2)."""
    if norm == "linf":
        return grad.sign()
    if norm == "l2":
        return grad / per_example(grad.flatten(1).norm(dim=1).clamp_min(1e-30), grad)
    raise NotApplicable(f"no steepest-ascent step for {norm} (linf, l2)")


def start_in_ball(target: Target, x: Tensor, corners: bool = False) -> Tensor:
    """A random point of the ball around each x, clipped to the box; draws come from the attack's generator.

    Uniform in the ball (linf, l2), or with ``corners`` ±eps per value (linf).
    """
    threat = target.threat
    if threat.norm == "linf":
        u = 2 * target.rand(*x.shape, like=x) - 1
        return project_(x + threat.eps * (u.sign() if corners else u), x, threat)
    if threat.norm == "l2" and not corners:
        radius = threat.eps * target.rand(len(x), like=x) ** (1 / x[0].numel())
        return project_(x + per_example(radius, x) * steepest(target.randn(*x.shape, like=x), "l2"), x, threat)
    raise NotApplicable(f"no random start{' in the corners' if corners else ''} for {threat.norm} balls")
