"""A fully convolutional network q that imitates a transform g, for the reparameterization attack.

Xiao & Zheng 2020, eq. 6 and appendix A.2: q(x, δ0) is trained on ‖q(x, δ0) - g(x; δ0)‖², where δ0 is the start
noise that g draws. A defense shows its noise by two methods, ``sample_start(x)``, which draws the start of g for
each image, and ``transform_from(x, start)``, which is g with that start and nothing else random. Without them the
noise cannot be observed, and q(x) learns the mean of g_s(x) over the draws s.

q works on residuals, q = x + h(x, …), without a squashing output: g(x) is close to x, and not always in the box.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.toolkit.layers import convolution, dimensions, resized
from attacks.toolkit.surrogates import bounded
from bench.contracts.attack import PrepareContext
from bench.contracts.defense import Defense, freeze
from bench.contracts.errors import InputError, NotApplicable
from bench.contracts.reporting import report
from bench.contracts.target import Target

if TYPE_CHECKING:
    from bench.data.splits import Split

_BATCH = 64
_PEAK_RATE = 4e-3
#: One training image in this many is held out to measure the imitation.
_HELD_OUT = 10
#: Images that q sees at most: an epoch of CIFAR-10. It looks at neighbourhoods, of which large images have many, and
#: g may take long.
_MOST_IMAGES = 50_000
#: Images on which the imitation is measured at most, of those it was trained on and of the others.
_MEASURED = 2_000
#: Batches between two reports.
_REPORTED = 5
#: Keys of what the training reports beside the network's weights.
TRAIN_MSE, TEST_MSE = "train_mse", "test_mse"
_SIZE = "size"
_DILATIONS = (1, 1, 2, 2, 1)


class Imitator(nn.Module):
    """q(x, start) = x + h(x, start): ``(N, C, …)``, twice, to ``(N, C', …)``. h has a linear path too.

    Args:
        c_in: channels of x.
        c_out: channels of g(x).
        size: of g(x) beside its channels, ``(H', W')`` of images; the result is interpolated where it differs from
            that of x.
        width: channels of the hidden layers.
        with_start: whether a start is an input beside x.
    """

    def __init__(self, c_in: int, c_out: int, size: tuple[int, ...], width: int, with_start: bool) -> None:
        super().__init__()
        conv = convolution(len(size))
        self.size, self.with_start, self.residual = size, with_start, c_in == c_out
        layers: list[nn.Module] = []
        channels = 2 * c_in if with_start else c_in
        for dilation in _DILATIONS:
            layers += [conv(channels, width, 3, padding=dilation, dilation=dilation), nn.ReLU()]
            channels = width
        self.layers = nn.Sequential(*layers, conv(width, c_out, 1))
        self.skip = conv(2 * c_in if with_start else c_in, c_out, 1, bias=False)
        for parameter in [*self.layers[-1].parameters(), *self.skip.parameters()]:
            nn.init.zeros_(parameter)  # training starts from the identity

    def forward(self, x: Tensor, start: Tensor | None = None) -> Tensor:
        inputs = x if start is None else torch.cat([x, start], 1)
        h = self.layers(inputs) + self.skip(inputs)
        if h.shape[2:] != self.size:
            h, x = resized(h, self.size), resized(x, self.size)
        out: Tensor = x + h if self.residual else h
        return out


def train_imitator(context: PrepareContext, epochs: int, width: int) -> dict[str, Tensor]:
    """Train q on the training split; returns its weights, ``train_mse`` and ``test_mse`` (on held-out images).

    Empty where g is the identity. Adam with a one-cycle rate; every batch sees fresh draws of g.

    Raises:
        NotApplicable: for inputs without neighbourhoods, or a g that changes the number of dimensions.
    """
    defense, device = context.defense, context.device
    assert defense is not None, "an imitator is trained per defense"
    split = context.train
    if not len(split):
        raise InputError("the imitation of g: is trained on training images, and the data have none")
    example = split.at(slice(_BATCH)).to(device)
    pairs = _pairs(defense)
    start, wanted = pairs(example)
    if wanted.shape == example.shape and torch.equal(wanted, example):
        return {}
    shape = tuple(wanted.shape[1:])
    given = tuple(example.shape[1:])
    if dimensions(given, "the imitation of g") != len(shape) - 1:
        raise NotApplicable(f"the imitation of g: no q = x + h maps inputs of shape {given} to {shape}, as g does")
    positions = torch.arange(len(split))
    held_out = positions % _HELD_OUT == 0
    train, test = positions[~held_out], positions[held_out]
    net = Imitator(example.shape[1], shape[0], shape[1:], width, start is not None).to(device)
    optimizer = torch.optim.Adam(net.parameters(), lr=_PEAK_RATE)
    budget = bounded(epochs, len(train), given, _MOST_IMAGES)
    batches = math.ceil(budget.images / _BATCH)
    total = budget.epochs * batches
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _PEAK_RATE, total_steps=total)
    for epoch in range(budget.epochs):
        for number, rows in enumerate(torch.randperm(len(train))[: budget.images].split(_BATCH)):
            if number % _REPORTED == 0:
                text = f"imitation of the transform, epoch {epoch + 1}/{budget.epochs}"
                report((epoch * batches + number) / total, text)
            x = split.at(train[rows]).to(device)
            start, wanted = pairs(x)
            optimizer.zero_grad()
            F.mse_loss(net(x, start), wanted).backward()
            optimizer.step()
            schedule.step()
    report(1.0, "measuring the imitation")
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    errors = {
        name: _error(net, pairs, split, positions[:_MEASURED], device)
        for name, positions in ((TRAIN_MSE, train), (TEST_MSE, test))
    }
    return weights | errors | {_SIZE: torch.tensor(shape[1:])}


def imitate(target: Target, x: Tensor, width: int) -> Tensor:
    """q(x), differentiable; x itself where g is the identity. ``width``: as given to :func:`train_imitator`.

    Where the defense shows its start noise, each row draws its own.
    """
    weights = {k: v for k, v in target.prepared.items() if k not in (TRAIN_MSE, TEST_MSE, _SIZE)}
    if not weights:
        return x
    channels, size = x.shape[1], tuple(target.prepared[_SIZE].tolist())
    c_out, inputs, *_ = weights["skip.weight"].shape
    with_start = inputs > channels
    net = Imitator(channels, c_out, size, width, with_start)
    net.load_state_dict(weights)
    sample_start = getattr(target.defense, "sample_start", None)
    start = sample_start(x.detach()) if with_start and sample_start is not None else None
    imitated: Tensor = freeze(net).to(x)(x, start)
    return imitated


def _pairs(defense: Defense) -> Callable[[Tensor], tuple[Tensor | None, Tensor]]:
    """``x -> (start, g(x; start))``, or ``(None, g(x))`` where the start noise cannot be seen."""
    transform_from = getattr(defense, "transform_from", None)
    sample_start = getattr(defense, "sample_start", None)

    @torch.no_grad()
    def pairs(x: Tensor) -> tuple[Tensor | None, Tensor]:
        if transform_from is None or sample_start is None:
            return None, defense.transform(x)
        start = sample_start(x)
        return start, transform_from(x, start)

    return pairs


@torch.no_grad()
def _error(
    net: Imitator,
    pairs: Callable[[Tensor], tuple[Tensor | None, Tensor]],
    split: Split,
    positions: Tensor,
    device: torch.device,
) -> Tensor:
    """Mean squared error per value over the images at ``positions`` of a split, a scalar."""
    total, count = 0.0, 0
    for rows in positions.split(_BATCH):
        x = split.at(rows).to(device)
        start, wanted = pairs(x)
        total += F.mse_loss(net(x, start), wanted, reduction="sum").item()
        count += wanted.numel()
    return torch.tensor(total / max(count, 1))
