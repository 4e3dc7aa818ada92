"""Torchattacks, by H. Kim."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..problem import Problem

_NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}


def pgd(problem: Problem, *, steps: int, step_size: float) -> Tensor:
    """PGD in linf or l2; ``step_size`` is a fraction of eps. It has no restarts."""
    import torchattacks

    alpha = step_size * problem.radius
    if problem.norm == "linf":
        return _run(problem, torchattacks.PGD(problem.model, eps=problem.radius, alpha=alpha, steps=steps))
    return _run(problem, torchattacks.PGDL2(problem.model, eps=problem.radius, alpha=alpha, steps=steps))


def eot_pgd(problem: Problem, *, steps: int, step_size: float, draws: int) -> Tensor:
    """PGD on the mean gradient of ``draws`` passes."""
    import torchattacks

    alpha = step_size * problem.radius
    attack = torchattacks.EOTPGD(problem.model, eps=problem.radius, alpha=alpha, steps=steps, eot_iter=draws)
    return _run(problem, attack)


def apgd(problem: Problem, *, loss: str, steps: int, restarts: int = 1) -> Tensor:
    """Untargeted APGD with the loss ``ce`` or ``dlr``."""
    import torchattacks

    return _run(
        problem, torchattacks.APGD(problem.model, steps=steps, loss=loss, n_restarts=restarts, **_common(problem))
    )


def apgd_t(problem: Problem, *, steps: int, classes: int) -> Tensor:
    """Targeted APGD, towards each of the ``classes`` likeliest classes in turn."""
    import torchattacks

    return _run(problem, torchattacks.APGDT(problem.model, steps=steps, n_classes=classes + 1, **_common(problem)))


def fab(problem: Problem, *, steps: int, classes: int = 0) -> Tensor:
    """FAB; targeted at ``classes`` classes in turn when that is above 0."""
    import torchattacks

    targeted: dict[str, Any] = {"multi_targeted": True, "n_classes": classes + 1} if classes else {}
    return _run(problem, torchattacks.FAB(problem.model, steps=steps, **targeted, **_common(problem)))


def square(problem: Problem, *, queries: int) -> Tensor:
    """Square, whose schedule of square sizes is fitted to the number of queries by default."""
    import torchattacks

    return _run(problem, torchattacks.Square(problem.model, n_queries=queries, **_common(problem)))


def autoattack(problem: Problem, *, version: str = "standard") -> Tensor:
    """Its composition of that name."""
    import torchattacks

    attack = torchattacks.AutoAttack(problem.model, version=version, n_classes=problem.num_classes, **_common(problem))
    return _run(problem, attack)


def deepfool(problem: Problem, *, steps: int) -> Tensor:
    """DeepFool in l2."""
    import torchattacks

    return _run(problem, torchattacks.DeepFool(problem.model, steps=steps))


def carlini_wagner(problem: Problem, *, steps: int, c: float = 1.0) -> Tensor:
    """C&W l2 with one constant ``c``: it searches for none."""
    import torchattacks

    return _run(problem, torchattacks.CW(problem.model, c=c, steps=steps))


def jsma(problem: Problem, *, theta: float, gamma: float) -> Tensor:
    """JSMA; untargeted it always aims at the class after y, which is what the comparison asks for."""
    import torchattacks

    return _run(problem, torchattacks.JSMA(problem.model, theta=theta, gamma=gamma))


def _common(problem: Problem) -> dict[str, Any]:
    return {"norm": _NORMS[problem.norm], "eps": problem.radius, "seed": problem.seed}


def _run(problem: Problem, attack: Any) -> Tensor:
    attack.set_device("cpu")
    return attack(problem.x, problem.y)
