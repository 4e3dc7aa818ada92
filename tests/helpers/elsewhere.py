"""Networks as people bring them: of real sizes, written without this project in mind. Loaded as bare models.

Their weights are drawn, not trained. A shift of the logits makes them give the images of :func:`images` many classes,
and these are taken for the true ones, so that an attack starts from networks that are right and not sure of it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.transforms import Normalize

Shape = tuple[int, int, int]
GREY, COLOUR, LARGE = (1, 28, 28), (3, 32, 32), (3, 224, 224)


def images(shape: Shape, n: int) -> Tensor:
    """Smooth random images whose values are whole grey levels."""
    generator = torch.Generator().manual_seed(sum(shape))
    coarse = torch.rand(n, shape[0], 7, 7, generator=generator)
    smooth = nn.functional.interpolate(coarse, shape[1:], mode="bilinear", align_corners=False)
    return (smooth * 255).round() / 255


class Centred(nn.Module):
    """A network whose logits are shifted and scaled to mean 0 and deviation 1 in every class, on 32 images."""

    def __init__(self, network: nn.Module, shape: Shape) -> None:
        super().__init__()
        self.network = network
        with torch.no_grad():
            logits = network.eval()(images(shape, 32))
        self.register_buffer("mean", logits.mean(0))
        self.register_buffer("deviation", logits.std(0))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = (self.network(x) - self.mean) / self.deviation
        return logits


def _made(make: Callable[[], nn.Module], shape: Shape) -> nn.Module:
    """A centred network, with the same weights every time and the global generator left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = make()
    return Centred(network, shape).eval()


class GreyCNN(nn.Sequential):
    """Two convolutions and two layers, as in a first tutorial on MNIST."""

    def __init__(self) -> None:
        super().__init__(
            Normalize((0.1307,), (0.3081,)),
            nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(),
            nn.Flatten(), nn.Linear(16 * 49, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 10),
        )  # fmt: skip


class Block(nn.Module):
    """Two convolutions with batch norm, and a short cut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs))
        self.two = nn.Sequential(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))
        self.short = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = (self.two(self.one(x).relu_()) + self.short(x)).relu_()
        return out


class ResNet(nn.Sequential):
    """A ResNet for 32×32 colour images, of three blocks."""

    def __init__(self) -> None:
        super().__init__(
            Normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
            nn.Conv2d(3, 8, 3, 1, 1), Block(8, 8, 1), Block(8, 16, 2), Block(16, 32, 2),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
        )  # fmt: skip


@dataclass
class Output:
    """What a Hugging Face model returns, in the parts that matter."""

    logits: Tensor
    loss: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class Wraps(nn.Module):
    """A model around another."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


class Object(Wraps):
    """Takes ``pixel_values`` and returns an object with ``logits``."""

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> Output:
        return Output(self.model(pixel_values))


class Probabilities(Wraps):
    """Its softmax left on."""

    def forward(self, x: Tensor) -> Tensor:
        probabilities: Tensor = (4 * self.model(x)).softmax(1)
        return probabilities


class Guesses(Wraps):
    """Logits of the classes in another order: what a model with another list of labels gives."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x).roll(1, 1)
        return logits


class _Stops(torch.autograd.Function):
    """The identity; a gradient that passes it ends a stretch of time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, clock: Timed) -> Tensor:
        ctx.clock = clock
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        ctx.clock.stop()
        return grads[0], None


class _Starts(_Stops):
    """The identity; a gradient that passes it begins a stretch of time."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        ctx.clock.start()
        return grads[0], None


class Timed(Wraps):
    """A model that writes what its passes forward and back have taken, in CPU seconds, to a file of its process.

    The file lies in the folder that the environment variable ``PASSES`` names.
    """

    total = since = 0.0

    def start(self) -> None:
        self.since = time.process_time()

    def stop(self) -> None:
        self.total += time.process_time() - self.since
        Path(os.environ["PASSES"], str(os.getpid())).write_text(str(self.total))

    def forward(self, x: Tensor) -> Tensor:
        back = x.requires_grad and torch.is_grad_enabled()
        self.start()
        out: Tensor = self.model(_Stops.apply(x, self) if back else x)
        out = _Starts.apply(out, self) if back else out
        self.stop()
        return out


def grey_cnn() -> nn.Module:
    """28×28 grey."""
    return _made(GreyCNN, GREY)


def colour_resnet() -> nn.Module:
    """32×32 colour."""
    return _made(ResNet, COLOUR)


def large() -> nn.Module:
    """224×224 colour, 1000 classes."""
    return _made(lambda: torchvision.models.mobilenet_v3_small(weights=None), LARGE)


def hugging_face() -> nn.Module:
    """Returns an object."""
    return Object(colour_resnet()).eval()


def half() -> nn.Module:
    """In half precision."""
    return colour_resnet().half()


def probabilities() -> nn.Module:
    """Returns probabilities."""
    return Probabilities(colour_resnet()).eval()


def at_chance() -> nn.Module:
    """Right about nothing."""
    return Guesses(colour_resnet()).eval()


def resnet18() -> nn.Module:
    """224×224 colour, 1000 classes: the usual network of this size, with a clock."""
    return Timed(_made(lambda: torchvision.models.resnet18(weights=None), LARGE)).eval()
