"""CleverHans (Papernot et al. 2018). It takes no seeds: the global generators decide."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..problem import Problem

_NORMS = {"linf": math.inf, "l2": 2}


def pgd(problem: Problem, *, steps: int, step_size: float) -> Tensor:
    """PGD; ``step_size`` is a fraction of eps. It has no restarts."""
    from cleverhans.torch.attacks.projected_gradient_descent import projected_gradient_descent

    return projected_gradient_descent(
        problem.model,
        problem.x,
        problem.radius,
        step_size * problem.radius,
        steps,
        _NORMS[problem.norm],
        clip_min=0,
        clip_max=1,
        y=problem.y,
        sanity_checks=False,
    )


def hopskipjump(problem: Problem, *, steps: int) -> Tensor:
    """HopSkipJump, one image at a time."""
    from cleverhans.torch.attacks.hop_skip_jump_attack import hop_skip_jump_attack

    norm = _NORMS[problem.norm]
    return hop_skip_jump_attack(
        problem.model,
        problem.x,
        norm,
        constraint=norm,
        num_iterations=steps,
        gamma=torch.ones(()),  # a plain 1.0 ends in a TypeError in linf: it asks for the smaller of two tensors
        verbose=False,
    )


def carlini_wagner(problem: Problem, *, searches: int, steps: int) -> Tensor:
    """C&W l2 with ``searches`` values of its constant and ``steps`` iterations of Adam for each."""
    from cleverhans.torch.attacks.carlini_wagner_l2 import carlini_wagner_l2

    return carlini_wagner_l2(
        problem.model,
        problem.x,
        problem.num_classes,
        y=problem.y,
        binary_search_steps=searches,
        max_iterations=steps,
    )
