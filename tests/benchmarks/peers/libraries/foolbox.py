"""Foolbox (Rauber, Brendel & Bethge 2017). It takes no seeds: the global generators decide."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..problem import Problem

_FMN = {"linf": "LInfFMNAttack", "l2": "L2FMNAttack", "l1": "L1FMNAttack", "l0": "L0FMNAttack"}
#: Noise directions tried as a start of a decision attack; it refuses to run when one example has none.
_START_DIRECTIONS = 1000


def pgd(problem: Problem, *, steps: int, step_size: float, restarts: int = 1, draws: int = 1) -> Tensor:
    """PGD in linf or l2; ``step_size`` is a fraction of eps, ``draws`` averages logits over passes."""
    import foolbox

    kinds: dict[str, Any] = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}
    attack = kinds[problem.norm](steps=steps, rel_stepsize=step_size)
    return _run(problem, attack if restarts == 1 else attack.repeat(restarts), draws)


def genattack(problem: Problem, *, steps: int, population: int) -> Tensor:
    """GenAttack, which only has a targeted form: here towards the class that the model ranks second."""
    import foolbox

    with torch.no_grad():
        second = problem.model(problem.x).topk(2, 1).indices[:, 1]
    criterion = foolbox.criteria.TargetedMisclassification(second)
    return _run(problem, foolbox.attacks.GenAttack(steps=steps, population=population), criterion=criterion)


def hopskipjump(problem: Problem, *, steps: int) -> Tensor:
    """HopSkipJump in linf or l2."""
    import foolbox

    start = foolbox.attacks.LinearSearchBlendedUniformNoiseAttack(directions=_START_DIRECTIONS, steps=50)
    norm: Any = problem.norm
    return _run(problem, foolbox.attacks.HopSkipJumpAttack(init_attack=start, steps=steps, constraint=norm))


def boundary(problem: Problem, *, steps: int) -> Tensor:
    """The boundary attack (l2)."""
    import foolbox

    start = foolbox.attacks.LinearSearchBlendedUniformNoiseAttack(directions=_START_DIRECTIONS, steps=50)
    return _run(problem, foolbox.attacks.BoundaryAttack(init_attack=start, steps=steps))


def deepfool(problem: Problem, *, steps: int) -> Tensor:
    """DeepFool in l2 or linf, over all classes."""
    import foolbox

    kinds: dict[str, Any] = {"l2": foolbox.attacks.L2DeepFoolAttack, "linf": foolbox.attacks.LinfDeepFoolAttack}
    return _run(problem, kinds[problem.norm](steps=steps, candidates=problem.num_classes))


def ddn(problem: Problem, *, steps: int) -> Tensor:
    """DDN."""
    import foolbox

    return _run(problem, foolbox.attacks.DDNAttack(steps=steps))


def fmn(problem: Problem, *, steps: int) -> Tensor:
    """FMN in any of its four norms."""
    import foolbox

    return _run(problem, getattr(foolbox.attacks, _FMN[problem.norm])(steps=steps))


def carlini_wagner(problem: Problem, *, searches: int, steps: int) -> Tensor:
    """C&W l2 with ``searches`` values of its constant and ``steps`` iterations of Adam for each."""
    import foolbox

    return _run(problem, foolbox.attacks.L2CarliniWagnerAttack(binary_search_steps=searches, steps=steps))


def _run(problem: Problem, attack: Any, draws: int = 1, criterion: Any = None) -> Tensor:
    import foolbox

    model: Any = foolbox.PyTorchModel(problem.model, bounds=(0, 1), device="cpu")
    if draws > 1:
        model = foolbox.models.ExpectationOverTransformationWrapper(model, n_steps=draws)
    if criterion is None:
        criterion = foolbox.criteria.Misclassification(problem.y)
    raw, clipped, _ = attack(model, problem.x, criterion, epsilons=problem.eps)
    return raw if problem.eps is None else clipped
