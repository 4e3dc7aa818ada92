"""Adversarial Library (``adv-lib``), by J. Rony and others. It takes no seeds: the global generators decide."""

from __future__ import annotations

import math

from torch import Tensor

from ..problem import Problem

_NORMS = {"linf": math.inf, "l2": 2, "l1": 1, "l0": 0}


def pgd(problem: Problem, *, steps: int, step_size: float, restarts: int = 1, loss: str = "ce") -> Tensor:
    """PGD in linf; ``step_size`` is a fraction of eps, ``loss`` is ``ce``, ``dl`` (the margin) or ``dlr``."""
    from adv_lib.attacks import pgd_linf

    return pgd_linf(
        problem.model,
        problem.x,
        problem.y,
        problem.radius,
        steps=steps,
        restarts=restarts,
        loss_function=loss,
        relative_step_size=step_size,
    )


def apgd(problem: Problem, *, loss: str, steps: int, restarts: int = 1, draws: int = 1) -> Tensor:
    """Untargeted APGD; ``draws`` is its ``eot_iter``."""
    from adv_lib.attacks import apgd as attack

    return attack(
        problem.model,
        problem.x,
        problem.y,
        problem.radius,
        _NORMS[problem.norm],
        n_iter=steps,
        n_restarts=restarts,
        loss_function=loss,
        eot_iter=draws,
    )


def apgd_t(problem: Problem, *, steps: int, classes: int) -> Tensor:
    """Targeted APGD with the targeted DLR loss, towards each of the ``classes`` likeliest classes in turn."""
    from adv_lib.attacks import apgd_targeted

    return apgd_targeted(
        problem.model,
        problem.x,
        problem.y,
        problem.radius,
        _NORMS[problem.norm],
        n_iter=steps,
        num_targets=classes,
    )


def fab(problem: Problem, *, steps: int, classes: int = 0) -> Tensor:
    """FAB; targeted at ``classes`` classes in turn when that is above 0."""
    from adv_lib.attacks import fab as attack

    return attack(
        problem.model,
        problem.x,
        problem.y,
        _NORMS[problem.norm],
        n_iter=steps,
        ε=problem.eps,
        restarts=classes or None,
        targeted_restarts=classes > 0,
    )


def deepfool(problem: Problem, *, steps: int) -> Tensor:
    """DeepFool in l2 or linf."""
    from adv_lib.attacks import df

    return df(problem.model, problem.x, problem.y, steps=steps, norm=_NORMS[problem.norm])


def ddn(problem: Problem, *, steps: int, levels: int | None = None) -> Tensor:
    """DDN; without rounding to grey levels unless ``levels`` says so (the library's default is 256)."""
    from adv_lib.attacks import ddn as attack

    return attack(problem.model, problem.x, problem.y, steps=steps, levels=levels)


def fmn(problem: Problem, *, steps: int) -> Tensor:
    """FMN in any of its four norms."""
    from adv_lib.attacks import fmn as attack

    return attack(problem.model, problem.x, problem.y, _NORMS[problem.norm], steps=steps)


def carlini_wagner(problem: Problem, *, searches: int, steps: int) -> Tensor:
    """C&W l2 with ``searches`` values of its constant and ``steps`` iterations of Adam for each."""
    from adv_lib.attacks import carlini_wagner_l2

    return carlini_wagner_l2(problem.model, problem.x, problem.y, binary_search_steps=searches, max_iterations=steps)
