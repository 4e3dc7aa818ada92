"""Adversarial Robustness Toolbox (Nicolae et al. 2018). Most of it takes no seeds: NumPy's generator decides."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..problem import Problem

_NORMS: dict[str, Any] = {"linf": np.inf, "l2": 2, "l1": 1}
_BATCH = 512


def pgd(problem: Problem, *, steps: int, restarts: int, step_size: float) -> Tensor:
    """PGD; ``step_size`` is a fraction of eps."""
    from art.attacks.evasion import ProjectedGradientDescent

    attack = ProjectedGradientDescent(
        _classifier(problem),
        norm=_NORMS[problem.norm],
        eps=problem.radius,
        eps_step=step_size * problem.radius,
        max_iter=steps,
        num_random_init=restarts,
        batch_size=_BATCH,
        verbose=False,
    )
    return _run(problem, attack)


def apgd(problem: Problem, *, loss: str, steps: int, restarts: int = 1) -> Tensor:
    """Untargeted APGD with the loss ``ce`` or ``dlr``."""
    from art.attacks.evasion import AutoProjectedGradientDescent

    attack = AutoProjectedGradientDescent(
        _classifier(problem),
        norm=_NORMS[problem.norm],
        eps=problem.radius,
        eps_step=2 * problem.radius,  # the first step of the paper
        max_iter=steps,
        nb_random_init=restarts,
        batch_size=_BATCH,
        loss_type={"ce": "cross_entropy", "dlr": "difference_logits_ratio"}[loss],
        verbose=False,
    )
    return _run(problem, attack)


def square(problem: Problem, *, queries: int) -> Tensor:
    """Square."""
    from art.attacks.evasion import SquareAttack

    attack = SquareAttack(
        _classifier(problem),
        norm=_NORMS[problem.norm],
        eps=problem.radius,
        max_iter=queries,
        batch_size=_BATCH,
        verbose=False,
    )
    return _run(problem, attack)


def hopskipjump(problem: Problem, *, steps: int) -> Tensor:
    """HopSkipJump, one image at a time. Its start is drawn from a generator that cannot be seeded."""
    from art.attacks.evasion import HopSkipJump

    attack = HopSkipJump(_classifier(problem), norm=_NORMS[problem.norm], max_iter=steps, verbose=False)
    return _run(problem, attack)


def boundary(problem: Problem, *, steps: int) -> Tensor:
    """The boundary attack (l2), one image at a time; every step takes up to 50 times 20 queries."""
    from art.attacks.evasion import BoundaryAttack

    attack = BoundaryAttack(_classifier(problem), targeted=False, max_iter=steps, verbose=False)
    return _run(problem, attack)


def deepfool(problem: Problem, *, steps: int) -> Tensor:
    """DeepFool in l2."""
    from art.attacks.evasion import DeepFool

    attack = DeepFool(
        _classifier(problem), max_iter=steps, nb_grads=problem.num_classes, batch_size=_BATCH, verbose=False
    )
    return _run(problem, attack)


def carlini_wagner(problem: Problem, *, searches: int, steps: int) -> Tensor:
    """C&W l2 with ``searches`` values of its constant and ``steps`` iterations for each."""
    from art.attacks.evasion import CarliniL2Method

    attack = CarliniL2Method(
        _classifier(problem), binary_search_steps=searches, max_iter=steps, batch_size=_BATCH, verbose=False
    )
    return _run(problem, attack)


def jsma(problem: Problem, *, theta: float, gamma: float) -> Tensor:
    """JSMA towards the given classes."""
    from art.attacks.evasion import SaliencyMapMethod

    attack = SaliencyMapMethod(_classifier(problem), theta=theta, gamma=gamma, batch_size=_BATCH, verbose=False)
    return _run(problem, attack)


class _Float32(nn.Module):
    """Under NumPy 2 its decision attacks hand float64 images to a float32 model, which would raise."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.float())


def _classifier(problem: Problem) -> Any:
    from art.estimators.classification import PyTorchClassifier

    return PyTorchClassifier(
        _Float32(problem.model).eval(),
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(problem.x.shape[1:]),
        nb_classes=problem.num_classes,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )


def _run(problem: Problem, attack: Any) -> Tensor:
    labels = problem.y if problem.targets is None else problem.targets
    return torch.from_numpy(attack.generate(problem.x.numpy(), y=labels.numpy()))
