"""A differentiable student of a defense: a network trained to give the mean of the probabilities that it gives.

Where g cannot be followed, what f(g(x)) does on average may still be a smooth function that a network can learn. It is
learnt where attacks go as well as at the training images: in the ball at random, and at points that fool the student
itself, which the defense labels anew in every batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.toolkit.losses import repeat
from attacks.toolkit.paths import Differentiable
from attacks.toolkit.projections import steepest
from attacks.toolkit.surrogates import build
from bench.contracts.attack import PrepareContext
from bench.contracts.defense import Defense, freeze
from bench.contracts.errors import InputError
from bench.contracts.reporting import report
from bench.contracts.target import Target
from bench.contracts.threat import Lp

_BATCH = 96
_PEAK_RATE = 4e-3
#: The surrogate that is the student: the residual one.
_ARCHITECTURE = 1
#: Share of the training after which a part of each batch are points that fool the student.
_FOOLING_FROM = 0.3
#: Steps towards these, each of half of eps.
_INNER_STEPS = 4


@dataclass(frozen=True)
class Distilled(Differentiable):
    """Attack through a student of the whole defense; its gradients and logits are the student's.

    Args:
        images: that the student is trained on, each labelled by ``draws`` passes of the defense.
        draws: of the defense's randomness for each of them; one where it is not randomised.
    """

    true_forward = False
    prepares = True
    images: int = 20_000
    draws: int = 2

    def logits(self, target: Target, defense: Defense, x: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=[]):  # weights are drawn here, and replaced at once
            student = build(_ARCHITECTURE, target.info)
        student.load_state_dict(target.prepared)
        logits: Tensor = freeze(student).to(x)(x)
        return logits

    def prepare(self, context: PrepareContext) -> dict[str, Tensor]:
        return train_student(context, self.images, self.draws)


def train_student(context: PrepareContext, images: int, draws: int) -> dict[str, Tensor]:
    """Train a student of ``context.defense``; returns its weights.

    A third of a batch are training images as they are, a third random points of the ball around others, a third, from
    ``_FOOLING_FROM`` on, points at which the student takes yet others for another class. Adam, one cycle.

    Raises:
        InputError: where there are no training images.
    """
    defense, train, device = context.defense, context.train, context.device
    assert defense is not None, "a student is trained per defense"
    if not len(train):
        raise InputError("the student: is trained on training images, and the data have none")
    student = build(_ARCHITECTURE, context.info).to(device)
    optimizer = torch.optim.Adam(student.parameters(), lr=_PEAK_RATE)
    batches = max(1, math.ceil(images / _BATCH))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _PEAK_RATE, total_steps=batches)
    draws = draws if defense.randomized else 1
    for number in range(batches):
        rows = torch.randint(len(train), (min(_BATCH, images),))
        x, y = train.at(rows).to(device), train.y[rows].to(device)
        points = _points(student, x, y, context.threat, fooling=number > _FOOLING_FROM * batches)
        with torch.no_grad():
            logits = defense(repeat(points, draws))
            wanted = logits.softmax(1).view(draws, len(points), -1).mean(0)
        optimizer.zero_grad()
        F.cross_entropy(student(points), wanted).backward()
        optimizer.step()
        schedule.step()
        if number % 10 == 0:
            report((number + 1) / batches, f"student, {number * _BATCH} of {images} images")
    return {name: tensor.detach().cpu().contiguous() for name, tensor in student.state_dict().items()}


def _points(student: nn.Module, x: Tensor, y: Tensor, threat: Lp, fooling: bool) -> Tensor:
    third = max(1, len(x) // 3)
    noisy = x + threat.eps * steepest(torch.randn_like(x), threat.norm) * torch.rand(len(x), *[1] * (x.ndim - 1)).to(x)
    noisy = threat.project_(noisy, x)
    points = torch.cat([x[:third], noisy[third:]])
    if fooling:
        last = slice(2 * third, None)
        z, around, labels = noisy[last].clone(), x[last], y[last]
        for _ in range(_INNER_STEPS):
            z.requires_grad_()
            (grad,) = torch.autograd.grad(F.cross_entropy(student(z), labels, reduction="sum"), z)
            z = threat.project_(z.detach() + threat.eps / 2 * steepest(grad, threat.norm), around)
        points[last] = z
    return points


def distilled(images: int = 20_000, draws: int = 2) -> Distilled:
    """Gradients of a student trained on ``images`` inputs to give the mean probabilities of ``draws`` passes."""
    return Distilled(images, draws)
