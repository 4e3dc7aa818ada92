"""Worst Case Bench itself, through the call that any user has: ``attacks.run``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

import attacks

from ..problem import Problem


def run(problem: Problem, *, attack: str, **params: Any) -> Tensor:
    """Any registered attack by its name."""
    result = attacks.run(
        attack,
        problem.model,
        problem.x,
        problem.y,
        norm=problem.norm,
        eps=problem.eps,
        towards=problem.targets,
        seed=problem.seed,
        randomized=problem.randomized,
        **params,
    )
    return result.x_adv
