"""Projections onto norm balls and steepest-ascent steps. Helpers that end in ``_`` work in place."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.contracts.errors import NotApplicable
from bench.contracts.target import Target
from bench.contracts.threat import ThreatModel


def per_example(values: Tensor, like: Tensor) -> Tensor:
    """Reshape ``(M,)`` so that it broadcasts against ``like (M, …)``."""
    return values.view(-1, *[1] * (like.ndim - 1))


def length(delta: Tensor, norm: str) -> Tensor:
    """Length of each perturbation ``(M, C, H, W)``, ``(M,)``; in l0 the number of pixels that any channel changes."""
    if norm == "l0":
        return (delta != 0).any(1).flatten(1).sum(1).to(delta.dtype)
    return flat_length(delta.flatten(1), norm)


def flat_length(delta: Tensor, norm: str) -> Tensor:
    """Length of each perturbation ``(…, D)`` in linf, l2 or l1, ``(…,)``."""
    if norm == "l2":
        return torch.linalg.vector_norm(delta, dim=-1)
    # Faster than vector_norm, which does not vectorise these.
    return delta.abs().amax(-1) if norm == "linf" else delta.abs().sum(-1)


def l1_unit(grad: Tensor) -> Tensor:
    """Gradients ``(M, …)`` divided by their l1 length, as momentum sums them up (Dong et al. 2018, eq. 6)."""
    return grad / per_example(grad.flatten(1).abs().sum(1).clamp_min(1e-30), grad)


def project_(x_adv: Tensor, x: Tensor, threat: ThreatModel) -> Tensor:
    """Project ``x_adv`` in place onto the ball around ``x`` intersected with the box; returns it.

    In linf, l2 and l1 the result is the feasible point that is nearest in l2. (Ball first and box after it would be
    feasible as well, but leave part of the radius unused wherever values are clipped.) In l0 the eps pixels of
    largest change (in l2 over the channels, after clipping to the box) are kept.
    """
    if threat.norm == "linf":
        torch.clamp(x_adv, x - threat.eps, x + threat.eps, out=x_adv)
    elif threat.norm == "l2":
        x_adv.copy_(x + l2_projection(x_adv - x, threat.low - x, threat.high - x, threat.eps))
    elif threat.norm == "l1":
        x_adv.copy_(x + l1_projection(x_adv - x, threat.low - x, threat.high - x, threat.eps))
    else:
        x_adv.clamp_(threat.low, threat.high)
        x_adv.copy_(torch.where(largest_pixels(x_adv - x, int(threat.eps)), x_adv, x))
    return x_adv.clamp_(threat.low, threat.high)


def l2_projection(delta: Tensor, low: Tensor, high: Tensor, eps: float) -> Tensor:
    """The nearest point of ``{u: ‖u‖₂ ≤ eps, low ≤ u ≤ high}``, with ``low ≤ 0 ≤ high`` per value; ``(M, …)`` each.

    It is clip(s·δ) for the largest s ≤ 1 that keeps it in the ball (the condition of optimality of the projection).
    For the values that are not clipped at s a larger s follows in closed form; from s = eps/‖δ‖₂ on, the set of
    clipped values only grows, so this ends, mostly after two or three times.
    """
    flat = delta.flatten(1)
    size = flat.abs()
    room = torch.where(flat > 0, high.flatten(1), -low.flatten(1)).clamp_min(0)
    scale = (eps / flat.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp_max(1.0)
    for _ in range(flat.shape[1]):
        free = size * scale < room
        clipped = torch.where(free, 0.0, room).pow(2).sum(1, keepdim=True)
        rest = torch.where(free, size, 0.0).pow(2).sum(1, keepdim=True)
        larger = ((eps**2 - clipped).clamp_min(0) / rest.clamp_min(1e-24)).sqrt().clamp_max(1.0)
        if not (larger > scale * (1 + 1e-6)).any():
            break
        scale = torch.maximum(scale, larger)
    return (flat.sign() * torch.minimum(size * scale, room)).view_as(delta)


def l1_projection(delta: Tensor, low: Tensor, high: Tensor, eps: float | Tensor) -> Tensor:
    """The nearest point in l2 of ``{u: ‖u‖₁ ≤ eps, low ≤ u ≤ high}``, with ``low ≤ 0 ≤ high`` per value.

    By Croce & Hein 2021 (Mind the Box, proposition 2.1) it is u(λ) = sign(δ)·min(max(|δ| - λ, 0), room), room being
    the distance to the box on the side of δ; ‖u(λ)‖₁ falls piecewise linearly in λ with breaks at |δ| and
    |δ| - room, so the λ with ‖u(λ)‖₁ = eps is found exactly by sorting the breaks.

    Args:
        delta, low, high: ``(M, …)``.
        eps: a number or ``(M,)``.
    """
    flat = delta.flatten(1)
    size = flat.abs()
    room = torch.where(flat > 0, high.flatten(1), -low.flatten(1)).clamp_min(0)
    radius = torch.as_tensor(eps, dtype=flat.dtype, device=flat.device).expand(len(flat))
    # Values of zero have no say in λ: where δ is sparse, only the others are sorted.
    number = max((size > 0).sum(1).tolist(), default=0)
    some, where = size.topk(max(1, number), dim=1, sorted=False)
    # Going down from λ = ∞ the length grows by one per unit for every value with |δ| - room < λ < |δ|.
    breaks, order = torch.cat([some, (some - room.gather(1, where)).clamp_min(0)], 1).sort(1, descending=True)
    slope = torch.cat([torch.ones_like(some), -torch.ones_like(some)], 1).gather(1, order).cumsum(1)
    ends = torch.cat([breaks[:, 1:], torch.zeros_like(breaks[:, :1])], 1)
    length = (slope * (breaks - ends)).cumsum(1)  # ‖u‖₁ at the lower end of each piece
    outside = length[:, -1] > radius
    piece = (length < radius[:, None]).sum(1).clamp_max(length.shape[1] - 1)[:, None]
    over = length.gather(1, piece).squeeze(1) - radius
    steep = slope.gather(1, piece).squeeze(1).clamp_min(1)
    cut = torch.where(outside, ends.gather(1, piece).squeeze(1) + over / steep, 0.0)
    kept = torch.minimum((size - cut[:, None]).clamp_min(0), room)
    return (flat.sign() * kept).view_as(delta)


def largest_pixels(delta: Tensor, count: int) -> Tensor:
    """Bool ``(M, 1, H, W)``: the ``count`` pixels in which ``delta (M, C, H, W)`` is longest in l2."""
    size = delta.pow(2).sum(1)
    flat = size.flatten(1)
    kept = torch.zeros_like(flat, dtype=torch.bool)
    kept.scatter_(1, flat.topk(min(count, flat.shape[1]), dim=1).indices, True)
    return kept.view_as(size)[:, None]


def steepest(grad: Tensor, norm: str) -> Tensor:
    """The direction of unit norm along which the linearised loss rises fastest.

    Sign (linf), g/‖g‖₂ (l2; for l0 as well, where the projection does the rest), and for l1 the sign of the largest
    value alone. (An optimiser in l1 does better with ``top_signs`` of several values.)
    """
    if norm == "linf":
        return grad.sign()
    if norm in ("l2", "l0"):
        return grad / per_example(grad.flatten(1).norm(dim=1).clamp_min(1e-30), grad)
    return top_signs(grad, 1)


def top_signs(grad: Tensor, count: int) -> Tensor:
    """The signs of the ``count`` largest values of each row over ``count``, zero elsewhere: of unit l1 norm."""
    flat = grad.flatten(1)
    count = min(count, flat.shape[1])
    largest = flat.abs().topk(count, dim=1, sorted=False).indices
    return torch.zeros_like(flat).scatter_(1, largest, flat.gather(1, largest).sign() / count).view_as(grad)


def movable(grad: Tensor, x_k: Tensor, threat: ThreatModel) -> Tensor:
    """``grad`` with zeros where a value lies on the side of the box that the gradient points to."""
    stuck = torch.where(grad > 0, x_k >= threat.high, x_k <= threat.low)
    return grad.masked_fill(stuck, 0)


def start_in_ball(target: Target, x: Tensor, corners: bool = False) -> Tensor:
    """A random point of the ball around each x, clipped to the box; draws come from the attack's generator.

    Uniform in the ball (linf, l2, l1), or with ``corners`` ±eps per value (linf); in l0 eps random pixels are
    uniform in the box.
    """
    threat = target.threat
    if threat.norm == "linf":
        u = 2 * target.rand(*x.shape, like=x) - 1
        return project_(x + threat.eps * (u.sign() if corners else u), x, threat)
    if corners:
        raise NotApplicable(f"no random start in the corners for {threat.norm} balls")
    if threat.norm == "l0":
        order = target.rand(len(x), 1, *x.shape[2:], like=x)
        uniform = threat.low + (threat.high - threat.low) * target.rand(*x.shape, like=x)
        return torch.where(largest_pixels(order, int(threat.eps)), uniform, x)
    radius = threat.eps * target.rand(len(x), like=x) ** (1 / x[0].numel())
    if threat.norm == "l2":
        direction = steepest(target.randn(*x.shape, like=x), "l2")
    else:  # exponential magnitudes with random signs are uniform on the l1 sphere once normalised
        u = 2 * target.rand(*x.shape, like=x) - 1
        direction = -u.sign() * torch.log((1 - u.abs()).clamp_min(1e-12))
        direction /= per_example(direction.flatten(1).abs().sum(1).clamp_min(1e-30), x)
    return project_(x + per_example(radius, x) * direction, x, threat)
