"""Signed gradient descent at the input, done by a defense at test time, and its smooth stand-ins."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bench.contracts.defense import Approximation
from defenses.parts.smooth_sign import LeakyClamp, SmoothSign, softsign_slope, tanh_slope

#: Derivative of a smooth sign; None: the true sign, and a cut graph.
Slope = Callable[[Tensor], Tensor]


def descend(
    x: Tensor,
    start: Tensor,
    loss: Callable[[Tensor], Tensor],
    *,
    steps: int,
    step_size: float,
    radius: float | None = None,
    slope: Slope | None = None,
) -> Tensor:
    """z_{k+1} = Π(z_k - α sign ∇loss(z_k)) from z_0 = x + start; Π: onto the linf ball of ``radius`` around x, if any.

    Args:
        x, start: ``(N, C, H, W)``.
        loss: what is minimised: images to a scalar, a sum over examples.
        steps, step_size, radius: K, α and the radius, the last two in pixel units.
        slope: None leaves no graph, as the true sign has no useful derivative. Otherwise the graph of all steps is
            kept, second derivatives of the network included, with this derivative of a smooth sign in the backward
            pass, where a clipped projection also leaks (``defenses.parts.smooth_sign``). The value is the same.

    Returns:
        z_K, shaped like x; it may leave [0, 1].
    """
    smooth = slope is not None
    x = x if smooth else x.detach()
    with torch.enable_grad():
        z = x + start
        for _ in range(steps):
            if not smooth:
                z = z.detach()
            if not z.requires_grad:
                z.requires_grad_()
            (u,) = torch.autograd.grad(loss(z), z, create_graph=smooth)
            delta = z - step_size * (u.sign() if slope is None else SmoothSign.apply(u, slope)) - x
            if radius is not None:
                delta = LeakyClamp.apply(delta, radius)
            z = x + delta
    return z if smooth else z.detach()


def smooth_approximations(draw: Callable[[Tensor, Slope], Tensor]) -> dict[str, Approximation]:
    """``tanh`` and ``softsign``: forward a real draw of g, backward the unrolled steps with that smooth sign.

    ``draw(x, slope)`` is g with the slope handed on to :func:`descend`.
    """
    return {
        "tanh": Approximation(lambda x: draw(x, tanh_slope), exact_forward=True),
        "softsign": Approximation(lambda x: draw(x, softsign_slope), exact_forward=True),
    }
