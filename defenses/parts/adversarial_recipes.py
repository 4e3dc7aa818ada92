"""What recipes of adversarial training share beyond ``defenses.parts.recipes``: a growing ball, one-step examples."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.toolkit.projections import steepest
from bench.contracts.errors import InputError
from bench.contracts.threat import Lp
from defenses.parts.recipes import augmentation_for, schedule_for

if TYPE_CHECKING:
    from bench.training.recipe import TrainingRun


def minimise_in_ball(
    run: TrainingRun,
    module: nn.Module,
    loss: Callable[[Tensor, Tensor, Lp], Tensor],
    *,
    stage: str,
    network: str = "auto",
    replays: int = 1,
) -> None:
    """Train ``module`` with a loss that looks for adversarial examples in a ball.

    As in :func:`defenses.parts.recipes.adversarial_training`, the radius grows linearly to that of ``run.threat`` over
    the first half of the epochs.

    Args:
        run: its threat model (linf or l2) is the ball.
        module: trained in place.
        loss: ``(x, y, threat) -> scalar``, the threat model being that of the epoch.
        stage: name in the training record.
        network: name of the architecture, which decides the schedule.
        replays: steps in a row on each batch; the number of epochs is divided by it and rounded up.

    Raises:
        InputError: for another norm.
    """
    if run.threat.norm not in ("linf", "l2"):
        raise InputError(f"{stage}: norm {run.threat.norm} is not available (linf, l2)")
    schedule = schedule_for(run.info, network)
    epochs = math.ceil(schedule.epochs / replays)
    schedule = replace(schedule, epochs=epochs, milestones=tuple(math.ceil(at / replays) for at in schedule.milestones))

    def at_radius(x: Tensor, y: Tensor) -> Tensor:
        share = min(1.0, 2 * (run.epoch + 1) / epochs)
        return loss(x, y, replace(run.threat, eps=share * run.threat.eps))

    run.minimise(stage, module, at_radius, augment=augmentation_for(run.info), replays=replays, **schedule.settings())


def one_step_examples(
    module: nn.Module, x: Tensor, y: Tensor, threat: Lp, *, step: float, random_start: bool
) -> Tensor:
    """FGSM (Goodfellow et al. 2015): one steepest step of ``step``·eps on cross-entropy, projected onto the ball.

    ``module`` is put in evaluation mode meanwhile and its mode is put back, as in
    :func:`defenses.parts.recipes.pgd_examples`.

    Args:
        module: of which the examples are.
        x: ``(N, C, H, W)``; y: int64 ``(N,)``; threat: the ball, linf or l2.
        step: length of the step in units of eps.
        random_start: step from a random point of the ball instead of x.

    Returns:
        Images shaped like ``x``.
    """
    training = module.training
    module.eval()
    start = threat.project_(x + threat.eps * (2 * torch.rand_like(x) - 1), x) if random_start else x.clone()
    start.requires_grad_()
    (grad,) = torch.autograd.grad(F.cross_entropy(module(start), y, reduction="sum"), start)
    module.train(training)
    return threat.project_(start.detach() + step * threat.eps * steepest(grad, threat.norm), x)
