"""Lengths of perturbations and directions of steepest ascent."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.contracts.balls import changed_positions
from bench.contracts.threat import Lp

#: Below this length of a gradient its squares may have vanished in single precision.
_TINY = 1e-18


def per_example(values: Tensor, like: Tensor) -> Tensor:
    """Reshape ``(M,)`` so that it broadcasts against ``like (M, …)``."""
    return values.view(-1, *[1] * (like.ndim - 1))


def length(delta: Tensor, norm: str) -> Tensor:
    """Length of each perturbation ``(M, …)``, ``(M,)``; in l0 the number of positions that any channel changes."""
    if norm == "l0":
        return changed_positions(delta).sum(1).to(delta.dtype)
    return flat_length(delta.flatten(1), norm)


def flat_length(delta: Tensor, norm: str) -> Tensor:
    """Length of each perturbation ``(…, D)`` in linf, l2 or l1, ``(…,)``."""
    if norm == "l2":
        lengths: Tensor = torch.linalg.vector_norm(delta, dim=-1)
        return lengths
    # Faster than vector_norm, which does not vectorise these.
    return delta.abs().amax(-1) if norm == "linf" else delta.abs().sum(-1)


def over_channels(values: Tensor) -> Tensor:
    """Sums over the channels of ``values (M, C, …)``, of bools whether any is True: ``(M, 1, …)``.

    In a batch ``(M, D)`` every value is a position of its own.
    """
    if values.ndim == 2:
        return values
    return values.any(1, keepdim=True) if values.dtype == torch.bool else values.sum(1, keepdim=True)


def l1_unit(grad: Tensor) -> Tensor:
    """Gradients ``(M, …)`` divided by their l1 length, as momentum sums them up (Dong et al. 2018, eq. 6)."""
    return grad / per_example(grad.flatten(1).abs().sum(1).clamp_min(1e-30), grad)



def steepest(grad: Tensor, norm: str) -> Tensor:
    """The direction of unit norm along which the linearised loss rises fastest.

    Sign (linf), g/‖g‖₂ (l2; for l0 as well, where the projection does the rest), and for l1 the sign of the largest
    value alone. (An optimiser in l1 does better with ``top_signs`` of several values.)
    """
    if norm == "linf":
        return grad.sign()
    if norm in ("l2", "l0"):
        length = grad.flatten(1).norm(dim=1)
        if (length < _TINY).any():  # so short that the squares of its values are lost, or zero
            largest = grad.flatten(1).abs().amax(1).clamp_min(torch.finfo(grad.dtype).tiny)
            grad = torch.where(per_example(length < _TINY, grad), grad / per_example(largest, grad), grad)
            length = grad.flatten(1).norm(dim=1)
        return grad / per_example(length.clamp_min(1e-30), grad)
    return top_signs(grad, 1)


def top_signs(grad: Tensor, count: int) -> Tensor:
    """The signs of the ``count`` largest values of each row over ``count``, zero elsewhere: of unit l1 norm."""
    flat = grad.flatten(1)
    count = min(count, flat.shape[1])
    largest = flat.abs().topk(count, dim=1, sorted=False).indices
    return torch.zeros_like(flat).scatter_(1, largest, flat.gather(1, largest).sign() / count).view_as(grad)


def movable(grad: Tensor, x_k: Tensor, threat: Lp) -> Tensor:
    """``grad`` with zeros where a value lies on the side of the box that the gradient points to."""
    stuck = torch.where(grad > 0, x_k >= threat.high, x_k <= threat.low)
    return grad.masked_fill(stuck, 0)
