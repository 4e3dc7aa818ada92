"""The fast gradient sign method and its iterated forms: one step, several steps, several with momentum."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from attacks.gradient.pgd import pgd
from attacks.toolkit.estimators import EstimatorLike, as_estimator, estimator_prepares, prepare_estimator
from attacks.toolkit.losses import Goal, LossLike, get_loss
from attacks.toolkit.projections import steepest
from bench.contracts.attack import attack
from bench.contracts.target import Target


@attack(
    "fgsm",
    version=1,
    knowledge="gradient",
    norms=("linf", "l2"),
    targeted=True,
    paper="Goodfellow, Shlens & Szegedy 2015, Explaining and Harnessing Adversarial Examples",
    url="https://arxiv.org/abs/1412.6572",
    prepare=prepare_estimator,
    prepares=estimator_prepares,
)
def fgsm(
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    loss: LossLike = "ce",
    downhill: bool = False,
    estimator: EstimatorLike = "exact",
) -> Tensor:
    """FGSM: one step of length eps along the sign of the gradient (Goodfellow et al. 2015).

    x_adv = Π(x + eps · s(g)) with s the sign (linf) or g/‖g‖₂ (l2). One forward and one backward pass, no random
    start, and no look at what the step did.

    Args:
        target: gradient knowledge.
        x: ``(N, …)`` in the box; y: int64 ``(N,)``.
        loss: what to raise (``attacks.toolkit.losses``).
        downhill: lower the loss instead: InvFGSM, which makes an image easier to classify. Not an attack in
            itself; augmentation and transforms that strengthen their input use it.
        estimator: how to get the gradient (``attacks.toolkit.estimators``).

    Returns:
        x_adv, shaped like x.
    """
    index = torch.arange(len(x), device=x.device)
    at = as_estimator(estimator).evaluate(target, x, Goal.of(target, get_loss(loss), y), index)
    step = target.ball.eps * steepest(at.grad, target.ball.norm)
    return target.threat.project_(x - step if downhill else x + step, x)


@attack(
    "bim",
    version=1,
    knowledge="gradient",
    norms=("linf", "l2"),
    targeted=True,
    paper="Kurakin, Goodfellow & Bengio 2017, Adversarial Examples in the Physical World",
    url="https://arxiv.org/abs/1607.02533",
    prepare=prepare_estimator,
    prepares=estimator_prepares,
)
def bim(
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    steps: Annotated[int, Ge(1)] = 10,
    step_size: Annotated[float, Gt(0)] = 0.25,
    loss: LossLike = "ce",
    estimator: EstimatorLike = "exact",
) -> Tensor:
    """BIM (IFGSM): FGSM steps of constant size from x, clipped to the ball (Kurakin et al. 2017).

    ``pgd`` without a random start and with a constant step; an example leaves once it is fooled.

    Args:
        target: gradient knowledge.
        x: ``(N, …)`` in the box; y: int64 ``(N,)``.
        steps: gradient steps.
        step_size: α as a fraction of eps.
        loss: what to maximise (``attacks.toolkit.losses``).
        estimator: how to get the gradient (``attacks.toolkit.estimators``).

    Returns:
        x_adv, shaped like x.
    """
    return pgd(
        target, x, y, steps=steps, step_size=step_size, schedule="constant", random_start=False, loss=loss,
        estimator=estimator,
    )  # fmt: skip


@attack(
    "mi-fgsm",
    version=1,
    knowledge="gradient",
    norms=("linf", "l2"),
    targeted=True,
    paper="Dong et al. 2018, Boosting Adversarial Attacks with Momentum",
    url="https://arxiv.org/abs/1710.06081",
    prepare=prepare_estimator,
    prepares=estimator_prepares,
)
def mi_fgsm(
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    steps: Annotated[int, Ge(1)] = 10,
    step_size: Annotated[float, Gt(0)] = 0.25,
    momentum: Annotated[float, Ge(0)] = 1.0,
    loss: LossLike = "ce",
    estimator: EstimatorLike = "exact",
) -> Tensor:
    """MI-FGSM: BIM along a decayed sum of L1-normalised gradients (Dong et al. 2018).

    g_{k+1} = μ·g_k + ∇/‖∇‖₁, and a step along its sign (l2: along g/‖g‖₂). The paper's step is eps over the number of
    steps; the larger default lets the last steps correct the first.

    Args:
        target: gradient knowledge.
        x: ``(N, …)`` in the box; y: int64 ``(N,)``.
        steps: gradient steps.
        step_size: α as a fraction of eps.
        momentum: μ.
        loss: what to maximise (``attacks.toolkit.losses``).
        estimator: how to get the gradient (``attacks.toolkit.estimators``).

    Returns:
        x_adv, shaped like x.
    """
    return pgd(
        target, x, y, steps=steps, step_size=step_size, schedule="constant", random_start=False, loss=loss,
        momentum=momentum, estimator=estimator,
    )  # fmt: skip
