"""The mathematics of balls in linf, l2, l1 and l0: distances, nearest points, uniform points.

Batches are ``(M, C, …)`` or ``(M, D)``. A *position* is a pixel of an image or a time of a waveform, which counts once
in l0, however many of its channels (dimension 1) change; in a batch ``(M, D)`` every value is a position.
"""

from __future__ import annotations

import torch
from torch import Tensor


def changed_positions(delta: Tensor) -> Tensor:
    """Bool ``(M, P)``: the positions in which any channel of ``delta`` differs from zero."""
    changed = delta != 0
    return changed if delta.ndim == 2 else changed.any(1).flatten(1)


def distances(x: Tensor, x_adv: Tensor) -> dict[str, Tensor]:
    """Distances between two batches, computed in float64: a dict norm → float64 ``(M,)``; ``l0`` counts positions."""
    delta = x_adv.double() - x.double()
    flat = delta.flatten(1)
    return {
        "linf": flat.abs().amax(1),
        "l2": flat.norm(dim=1),
        "l1": flat.abs().sum(1),
        "l0": changed_positions(delta).sum(1).double(),
    }


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


def largest_positions(delta: Tensor, count: int) -> Tensor:
    """Bool ``(M, 1, …)``: the ``count`` positions in which ``delta (M, C, …)`` is longest in l2 over the channels.

    In a batch ``(M, D)`` every value is a position.
    """
    size = delta.pow(2) if delta.ndim == 2 else delta.pow(2).sum(1)
    flat = size.flatten(1)
    kept = torch.zeros_like(flat, dtype=torch.bool)
    kept.scatter_(1, flat.topk(min(count, flat.shape[1]), dim=1).indices, True)
    return kept if delta.ndim == 2 else kept.view_as(size)[:, None]


def uniform_directions(norm: str, x: Tensor, generator: torch.Generator) -> Tensor:
    """Perturbations shaped like ``x``, uniform on the sphere of radius 1 in l2 or l1."""
    if norm == "l2":
        flat = torch.randn(x.shape, generator=generator).to(x).flatten(1)
        size = flat.norm(dim=1, keepdim=True)
    else:  # exponential magnitudes with random signs are uniform on the l1 sphere once normalised
        u = 2 * torch.rand(x.shape, generator=generator).to(x).flatten(1) - 1
        flat = -u.sign() * torch.log((1 - u.abs()).clamp_min(1e-12))
        size = flat.abs().sum(1, keepdim=True)
    return torch.div(flat, size.clamp_min(1e-30)).view_as(x)
