"""Training recipes that several defenses share. The numbers are the usual ones for the size of the images."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.toolkit.projections import steepest
from bench.contracts.defense import Defense
from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo
from bench.contracts.threat import Lp
from defenses.parts.nets import is_compact

if TYPE_CHECKING:
    from bench.training.recipe import Policy, Precision, TrainingRun


@dataclass(frozen=True)
class Schedule:
    """Settings of gradient descent: SGD with momentum 0.9, learning rate divided by 10 at every milestone.

    ``inner_steps``: at most so many steps of the attack inside adversarial training. The others are those of
    :meth:`bench.training.recipe.TrainingRun.minimise`.
    """

    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    milestones: tuple[int, ...] = ()
    policy: Policy = "steps"
    average: float = 0.0
    precision: Precision = "float32"
    inner_steps: float = math.inf

    def settings(self) -> dict[str, Any]:
        """Keyword arguments for :meth:`bench.training.recipe.TrainingRun.minimise`."""
        return {name: value for name, value in vars(self).items() if name != "inner_steps"}

    def inner(self, steps: int) -> int:
        """How many of the asked ``steps`` the attack inside adversarial training makes."""
        return int(min(steps, self.inner_steps))


def schedule_for(info: DataInfo, network: str = "auto", epochs: int | None = None) -> Schedule:
    """A schedule that reaches the usual accuracy of the network (``defenses.parts.nets``) on inputs of this size.

    Args:
        epochs: in place of the schedule's own number. One of milestones stops early; a cycle is a shorter cycle.
    """
    schedule = _usual_schedule(info, network)
    return schedule if epochs is None else replace(schedule, epochs=epochs)


def _usual_schedule(info: DataInfo, network: str) -> Schedule:
    if info.input.kind == "waveform":
        return Schedule(30, 64, 0.05, 5e-4, (20, 26))
    if network == "cnn-a":
        return Schedule(30, 128, 0.05, 5e-4, (22, 27))
    if is_compact(info, network):
        # Three inner steps: with what two cores can do, more epochs gain more than longer attacks.
        return Schedule(
            30, 128, 0.2, 5e-4, policy="one-cycle", average=0.995, precision="bfloat16", inner_steps=3
        )  # fmt: skip
    if network == "resnet8":
        return Schedule(8, 128, 0.1, 5e-4, (5, 7))
    if min(info.shape[1:]) < 16:
        return Schedule(40, 32, 0.02, 5e-4, (28, 36))
    if min(info.shape[1:]) < 32:
        return Schedule(20, 128, 0.05, 5e-4, (12, 17))
    return Schedule(80, 128, 0.1, 5e-4, (50, 70))


def augmentation_for(info: DataInfo) -> Callable[[Tensor], Tensor] | None:
    """Random crops after zero padding; left-right flips too for colour images, whose classes they keep.

    None below 16 pixels, where a shift by one pixel is a large change, and for waveforms.
    """
    if info.input.kind != "image":
        return None
    size = min(info.shape[1:])
    return random_crop_and_flip(size // 8, flip=info.shape[0] == 3) if size >= 16 else None


def random_crop_and_flip(pad: int, flip: bool) -> Callable[[Tensor], Tensor]:
    """``x -> x``: every image shifted by up to ``pad`` pixels (zeros move in), and flipped half of the time."""

    def augment(x: Tensor) -> Tensor:
        n, _, height, width = x.shape
        padded = F.pad(x, (pad,) * 4)
        top = torch.randint(2 * pad + 1, (n,), device=x.device)
        left = torch.randint(2 * pad + 1, (n,), device=x.device)
        rows = top[:, None] + torch.arange(height, device=x.device)
        columns = left[:, None] + torch.arange(width, device=x.device)
        if flip:
            flipped = torch.rand(n, device=x.device) < 0.5
            columns = torch.where(flipped[:, None], columns.flip(1), columns)
        examples = torch.arange(n, device=x.device)[:, None, None]
        return padded.permute(0, 2, 3, 1)[examples, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)

    return augment


def existing_classifier(info: DataInfo, of: str = "none") -> str | None:
    """What ``weights_of`` is for a layer in front of a network: on small images it has a network of its own.

    On large ones (``DataInfo.large``) the layers stand before one and the same network, as most of their papers have
    them.
    """
    return of if info.large else None


def train_classifier(run: TrainingRun, defense: Defense, network: str = "auto", epochs: int | None = None) -> None:
    """Natural training of f on g(x), with a fresh draw of g for every batch: cross-entropy of ``defense(x)``.

    Args:
        network: names the architecture of f, which decides the schedule.
        epochs: as in :func:`schedule_for`.
    """

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(defense(x), y)

    settings = schedule_for(run.info, network, epochs).settings()
    run.minimise(
        "classifier",
        defense.classifier,
        loss,
        augment=augmentation_for(run.info),
        **settings,
    )


def natural_training(
    run: TrainingRun,
    module: nn.Module,
    stage: str = "natural training",
    *,
    network: str = "auto",
    epochs: int | None = None,
) -> None:
    """Cross-entropy of ``module(x)`` on the images as they are; ``epochs`` as in :func:`schedule_for`."""

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(module(x), y)

    settings = schedule_for(run.info, network, epochs).settings()
    run.minimise(stage, module, loss, augment=augmentation_for(run.info), **settings)


def adversarial_training(
    run: TrainingRun,
    module: nn.Module,
    *,
    steps: int = 10,
    stage: str = "adversarial training",
    network: str = "auto",
    epochs: int | None = None,
) -> None:
    """PGD adversarial training (Madry et al. 2018, eq. 2.1): cross-entropy at the worst point PGD finds.

    The radius grows linearly over the first half of the epochs: from scratch at a large eps, a small network
    with dropout would settle on a constant.

    Args:
        run: its threat model (linf or l2) is the ball of the inner maximisation.
        module: the network, trained in place.
        steps: of the inner PGD, at most the schedule's ``inner_steps``; the step size is 2.5·eps/steps, so that the
            ball's border can be reached.
        stage: name in the training record.
        network: name of the architecture, which decides the schedule of the descent.
        epochs: as in :func:`schedule_for`.

    Raises:
        InputError: for another norm.
    """
    if run.threat.norm not in ("linf", "l2"):
        raise InputError(f"adversarial training: norm {run.threat.norm} is not available (linf, l2)")

    schedule = schedule_for(run.info, network, epochs)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        share = min(1.0, 2 * (run.epoch + 1) / schedule.epochs)
        threat = replace(run.threat, eps=share * run.threat.eps)
        return F.cross_entropy(module(pgd_examples(module, x, y, threat, schedule.inner(steps))), y)

    run.minimise(stage, module, loss, augment=augmentation_for(run.info), **schedule.settings())


def pgd_examples(module: nn.Module, x: Tensor, y: Tensor, threat: Lp, steps: int) -> Tensor:
    """Adversarial examples for training: PGD on cross-entropy from a random point of the ball.

    ``module`` is put in evaluation mode meanwhile (its mode is put back), so that the adversarial batches of the
    inner loop do not move batch-norm statistics and dropout does not blur the gradient.
    """
    training = module.training
    module.eval()
    x_adv = threat.project_(x + threat.eps * (2 * torch.rand_like(x) - 1), x)
    for _ in range(steps):
        x_adv.requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(module(x_adv), y, reduction="sum"), x_adv)
        step = 2.5 * threat.eps / steps * steepest(grad, threat.norm)
        x_adv = threat.project_(x_adv.detach() + step, x)
    module.train(training)
    return x_adv
