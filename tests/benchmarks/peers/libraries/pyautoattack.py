"""AutoAttack by its authors (Croce & Hein 2020), packaged as ``pyautoattack``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..problem import Problem

_NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}


def apgd(problem: Problem, *, loss: str, steps: int, restarts: int = 1, draws: int = 1) -> Tensor:
    """Untargeted APGD with the loss ``ce`` or ``dlr``; ``draws`` is its ``eot_iter``."""
    from pyautoattack.autopgd_base import APGDAttack

    common = _common(problem)
    return APGDAttack(problem.model, n_iter=steps, n_restarts=restarts, loss=loss, eot_iter=draws, **common).perturb(
        problem.x, problem.y
    )


def apgd_t(problem: Problem, *, steps: int, classes: int) -> Tensor:
    """Targeted APGD with the targeted DLR loss, towards each of the ``classes`` likeliest classes in turn."""
    from pyautoattack.autopgd_base import APGDAttack_targeted

    common = _common(problem)
    return APGDAttack_targeted(problem.model, n_iter=steps, n_target_classes=classes, **common).perturb(
        problem.x, problem.y
    )


def fab(problem: Problem, *, steps: int, classes: int = 0) -> Tensor:
    """FAB; targeted at ``classes`` classes in turn when that is above 0."""
    from pyautoattack.fab_pt import FABAttack_PT

    targeted: dict[str, Any] = {"targeted": True, "n_target_classes": classes} if classes else {}
    return FABAttack_PT(problem.model, n_iter=steps, **targeted, **_common(problem)).perturb(problem.x, problem.y)


def square(problem: Problem, *, queries: int, rescaled: bool) -> Tensor:
    """Square; ``rescaled`` fits the schedule of square sizes to the number of queries (AutoAttack does not)."""
    from pyautoattack.square import SquareAttack

    return SquareAttack(
        problem.model, n_queries=queries, p_init=0.8, resc_schedule=rescaled, **_common(problem)
    ).perturb(problem.x, problem.y)


def autoattack(problem: Problem, *, version: str = "standard") -> Tensor:
    """The whole composition, in the batches of 250 that are its default."""
    from pyautoattack import AutoAttack

    x_adv, _ = AutoAttack(problem.model, version=version, **_common(problem)).run_standard_evaluation(
        problem.x, problem.y
    )
    return x_adv


def _common(problem: Problem) -> dict[str, Any]:
    return {"norm": _NORMS[problem.norm], "eps": problem.radius, "seed": problem.seed, "device": "cpu"}
