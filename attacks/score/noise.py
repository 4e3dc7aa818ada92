"""Random noise in the ball: a control. Where it beats a gradient attack, the gradient attack is broken."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from bench.contracts.attack import attack
from bench.contracts.errors import NotApplicable
from bench.contracts.target import Target


@attack(
    "noise",
    version=1,
    knowledge="decision",
    norms=("linf", "l2"),
    paper="Carlini et al. 2019, On Evaluating Adversarial Robustness, section 4 (random-noise control)",
    url="https://arxiv.org/abs/1902.06705",
)
def noise(target: Target, x: Tensor, y: Tensor, *, draws: Annotated[int, Ge(1)] = 100, corners: bool = False) -> Tensor:
    """Random points of the ball, keeping the first one that fools the defense.

    Args:
        target: decision knowledge.
        x: ``(N, …)``; y: int64 ``(N,)``.
        draws: points tried per example; on a randomised defense each is tried once.
        corners: draw ±eps per value instead of uniformly in the ball (linf only).

    Returns:
        x_adv, shaped like x.
    """
    x_adv = x.clone()
    active = torch.arange(len(x), device=x.device)
    for _ in range(draws):
        points = _corners(target, x) if corners else target.threat.sample(x, target.generator)
        candidate = points[active]
        x_adv[active] = candidate
        active = active[~target.is_adversarial(candidate, y[active], active)]
        if not len(active):
            break
    return x_adv


def _corners(target: Target, x: Tensor) -> Tensor:
    """Random corners of the linf ball, clipped to the box."""
    ball = target.ball
    if ball.norm != "linf":
        raise NotApplicable(f"no random start in the corners for {ball.norm} balls")
    return ball.project_(x + ball.eps * (2 * target.rand(*x.shape, like=x) - 1).sign(), x)
