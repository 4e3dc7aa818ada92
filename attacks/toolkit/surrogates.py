"""Surrogate classifiers for transfer attacks: small networks trained without any knowledge of a defense."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.toolkit.layers import average_pool, convolution, dimensions
from attacks.toolkit.projections import steepest
from bench.contracts.attack import PrepareContext
from bench.contracts.defense import freeze
from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo
from bench.contracts.reporting import report
from bench.contracts.threat import Lp

_BATCH = 128
_PEAK_RATE = 4e-3
#: Steps of the inner maximisation of adversarial training, each of half of eps.
_INNER_STEPS = 3
#: What a surrogate sees at most, 4 epochs of CIFAR-10: images, and pixels of a channel, which are what a pass costs.
#: A bound on steps and not on seconds, so that rows stay the same.
_MOST_IMAGES, _MOST_PIXELS = 200_000, 200_000 * 32 * 32
#: Batches between two reports.
_REPORTED = 10


def build(number: int, info: DataInfo) -> nn.Module:
    """The ``number``-th surrogate for inputs of ``info.shape``: plain, residual and large-kernel in turn.

    Maps ``(N, C, …)`` in the data's box to logits ``(N, num_classes)``. Group normalisation throughout, so that
    training and evaluation mode do not differ.

    Raises:
        NotApplicable: for inputs without neighbourhoods, ``(N, D)``.
    """
    dimensions(info.shape, "a surrogate")
    return (_plain, _residual, _large_kernel)[number % 3](info)


def is_robust(number: int, training: str) -> bool:
    """Whether the ``number``-th surrogate is adversarially trained: all, none, or two of every three (mixed)."""
    return training == "adversarial" or (training == "mixed" and number % 3 != 2)


def train_surrogates(context: PrepareContext, *, count: int, epochs: int, training: str) -> dict[str, Tensor]:
    """Train ``count`` surrogates on ``context.train``; returns their weights, keys ``"<number>.<parameter>"``.

    A robust surrogate sees PGD examples at the threat's eps (Madry et al. 2018), which transfer to robust models;
    a standard one sees clean images. Adam with a one-cycle rate.
    """
    if not len(context.train):
        raise InputError("surrogates: are trained on training images, and the data have none")
    weights: dict[str, Tensor] = {}
    budget = bounded(epochs, len(context.train), context.info.shape, _MOST_IMAGES)
    for number in range(count):
        model = build(number, context.info).to(context.device)
        robust = is_robust(number, training)
        kind = "adversarially trained" if robust else "standard"
        for seen in _train(model, context, budget, robust):
            done, epoch = (number + seen / budget.epochs) / count, min(int(seen) + 1, budget.epochs)
            report(done, f"surrogate {number + 1}/{count}, {kind}, epoch {epoch}/{budget.epochs}")
        for name, tensor in model.state_dict().items():
            weights[f"{number}.{name}"] = tensor.detach().cpu().contiguous()
    return weights


def load_surrogates(weights: dict[str, Tensor], info: DataInfo, device: torch.device) -> list[nn.Module]:
    """The surrogates that :func:`train_surrogates` returned the weights of, frozen."""
    numbers = sorted({int(key.partition(".")[0]) for key in weights})
    models = []
    for number in numbers:
        prefix = f"{number}."
        with torch.random.fork_rng(devices=[]):  # weights are drawn here, and replaced at once
            model = build(number, info)
        model.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})
        models.append(freeze(model).to(device))
    return models


@dataclass(frozen=True)
class Budget:
    """Epochs, and images of each: all, or the first so many of every shuffle."""

    epochs: int
    images: int


def bounded(epochs: int, images: int, shape: tuple[int, ...], most: int) -> Budget:
    """So many epochs over so many images ``(C, …)``; fewer of them, and in the end part of one, where that is too many.

    Args:
        most: images in all, at sizes of up to 32×32 pixels; of larger ones fewer.
    """
    pixels = math.prod(shape[1:])
    seen = max(1, min(most, _MOST_PIXELS * most // _MOST_IMAGES // pixels))
    return Budget(max(1, min(epochs, seen // images)), min(images, seen))


def _train(model: nn.Module, context: PrepareContext, budget: Budget, robust: bool) -> Iterator[float]:
    """Train; yields now and then how many epochs are done, first 0."""
    train, epochs = context.train, budget.epochs
    batches = math.ceil(budget.images / _BATCH)
    optimizer = torch.optim.Adam(model.parameters(), lr=_PEAK_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _PEAK_RATE, total_steps=epochs * batches)
    for epoch in range(epochs):
        for number, rows in enumerate(torch.randperm(len(train))[: budget.images].split(_BATCH)):
            if number % _REPORTED == 0:
                yield epoch + number / batches
            images, labels = train.at(rows).to(context.device), train.y[rows].to(context.device)
            if robust:
                images = _worst_nearby(model, images, labels, context.threat)
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            schedule.step()
    yield float(epochs)


def _worst_nearby(model: nn.Module, x: Tensor, y: Tensor, threat: Lp) -> Tensor:
    """PGD on the cross-entropy, from a random point of the ball."""
    x_k = threat.project_(x + threat.eps * steepest(torch.randn_like(x), threat.norm) * torch.rand(()), x)
    for _ in range(_INNER_STEPS):
        x_k.requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(model(x_k), y, reduction="sum"), x_k)
        x_k = threat.project_(x_k.detach() + threat.eps / 2 * steepest(grad, threat.norm), x)
    return x_k


# -- architectures ----------------------------------------------------------------------------------------------


def _widths(info: DataInfo) -> list[int]:
    """Channels of each stage; a stage halves every side, the last one leaves about 4."""
    stages = max(1, round(math.log2(max(info.shape[1:]) / 4)))
    return [min(24 * 2**stage, 128) for stage in range(stages + 1)]


def _block(dims: int, c_in: int, c_out: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    conv = convolution(dims)(c_in, c_out, kernel, stride=stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.GroupNorm(8, c_out), nn.ReLU())


class _Residual(nn.Module):
    def __init__(self, dims: int, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(_block(dims, width, width), _block(dims, width, width))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.inner(x)
        return out


def _network(info: DataInfo, stage: Callable[[int, int, int], nn.Module], kernel: int = 3) -> nn.Sequential:
    widths, dims = _widths(info), len(info.shape) - 1
    stem = _block(dims, info.shape[0], widths[0], kernel)
    stages = [stage(dims, c_in, c_out) for c_in, c_out in pairwise(widths)]
    head = [average_pool(dims, 4), nn.Flatten(), nn.Linear(4**dims * widths[-1], info.num_classes)]
    return nn.Sequential(stem, *stages, *head)


def _plain(info: DataInfo) -> nn.Module:
    def stage(dims: int, c_in: int, c_out: int) -> nn.Module:
        return nn.Sequential(_block(dims, c_in, c_out, stride=2), _block(dims, c_out, c_out))

    return _network(info, stage)


def _residual(info: DataInfo) -> nn.Module:
    def stage(dims: int, c_in: int, c_out: int) -> nn.Module:
        return nn.Sequential(_Residual(dims, c_in), _block(dims, c_in, c_out, stride=2), _Residual(dims, c_out))

    return _network(info, stage)


def _large_kernel(info: DataInfo) -> nn.Module:
    def stage(dims: int, c_in: int, c_out: int) -> nn.Module:
        return _block(dims, c_in, c_out, kernel=5, stride=2)

    return _network(info, stage, kernel=5)
