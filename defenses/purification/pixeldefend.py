"""PixelDefend: purification with an autoregressive density model (Song et al. 2018)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.toolkit.paths import straight_through
from bench.contracts.defense import Approximation, Card, Claim, Defense, freeze
from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo
from defenses.parts.nets import classifier_for
from defenses.parts.recipes import natural_training, schedule_for

if TYPE_CHECKING:
    from bench.training.recipe import TrainingRun


class PixelDefend(Defense):
    """g moves an image to where a model of clean images finds it likely, pixel by pixel (the paper's algorithm 1).

    Every value, in raster order and R, G, B within a pixel, becomes the most likely level within ``eps_defend`` of
    what it was, given the values that came before as they are now. The classifier is trained on clean images. The
    search is outside autograd.

    The paper's density model is PixelCNN++ with a softmax; ours is a small PixelCNN (van den Oord et al. 2016,
    :class:`PixelCNN`).

    Args:
        data: decides the architectures and the levels.
        eps_defend: how far a value may move, in pixel units; default 16/255 as in the paper for CIFAR-10, below 16
            pixels SMALL_EPS.
        levels: grey levels of the model; default 256, below 16 pixels the 17 of scikit-learn's digits.
        width: channels of the density model.
        network: of the classifier, another architecture by its name (``defenses.parts.nets``); the paper's residual
            network is nearest to ``resnet18``, its other one ``vgg16``.
    """

    version = 1
    kinds = ("image",)
    trains_in_ball = False
    card = Card(
        title="PixelDefend",
        summary=(
            "An autoregressive model of clean images replaces each pixel, in order, by the most likely value within a "
            "small distance of it. "
            "Adversarial examples lie where such a model sees little probability, so moving back to likely images was "
            "thought to undo the perturbation. "
            "The purification is a loop over all pixels with a choice in each, which the authors held too deep to be "
            "differentiated. "
            "Purified images look like their inputs, so BPDA with the identity as the backward pass brought accuracy "
            "on CIFAR-10 down to 9 %. "
            "Attacks that need only scores or labels break it as well."
        ),
        paper="Song, Kim, Nowozin, Ermon, Kushman 2018, "
        "PixelDefend: Leveraging Generative Models to Understand and Defend against Adversarial Examples",
        url="https://arxiv.org/abs/1710.10766",
        family="purification",
        tags=("deterministic", "not differentiable", "input transformation", "generative model"),
        breaks=(
            Claim("cifar10", "linf 0.031", None, 9.0, "BPDA", "Athalye et al. 2018, table 1"),
        ),
    )  # fmt: skip

    def __init__(
        self,
        data: DataInfo,
        eps_defend: float | None = None,
        levels: int | None = None,
        width: int | None = None,
        network: str = "auto",
    ) -> None:
        super().__init__(data)
        small = min(data.shape[1:]) < 16
        if levels is None:
            levels = 17 if small else 256
        if eps_defend is None:
            eps_defend = SMALL_EPS if small else 16 / 255
        if width is None:
            width = 32 if small else 64
        if not 2 <= levels <= 256:
            raise InputError(f"pixeldefend: levels {levels} is outside 2..256")
        if not 0.5 / (levels - 1) <= eps_defend <= 1:
            raise InputError(f"pixeldefend: eps_defend {eps_defend} is below half a level (of {levels}) or above 1")
        if width < 1:
            raise InputError(f"pixeldefend: width {width} must be at least 1")
        self.eps_defend, self.levels = eps_defend, levels
        self.density = PixelCNN(data.shape[0], levels, width, layers=4 if small else 8)
        self.network = network
        self.classifier = classifier_for(data, network)

    @torch.no_grad()
    def transform(self, x: Tensor) -> Tensor:
        """The purified image, ``(N, C, H, W)`` of values k/(levels - 1). Cuts the graph."""
        grid = torch.arange(self.levels, device=x.device).to(x) / (self.levels - 1)

        def most_likely(logits: Tensor, row: int, column: int, channel: int) -> Tensor:
            far = (grid - x[:, channel, row, column, None]).abs() > self.eps_defend + 1e-6
            return grid[logits.masked_fill_(far, -torch.inf).argmax(1)]

        return self.density.generate(x, most_likely)

    def approximations(self) -> dict[str, Approximation]:
        """Two stand-ins.

        ``soft``: the exact value, differentiated as :meth:`_soft`. ``identity``: what comes out is near to what went
        in (Athalye et al. 2018, section 5.3).
        """

        def soft(x: Tensor) -> Tensor:
            return straight_through(value := self.transform(x), self._soft(x, straight_through(value, x)))

        return {"soft": Approximation(soft, exact_forward=True), "identity": Approximation(lambda x: x)}

    def _soft(self, x: Tensor, purified: Tensor) -> Tensor:
        """The expected level instead of the most likely one, within a window around x with soft edges.

        All values at once: each is given the ``purified`` values before it. At small ``SOFTNESS`` the window's edges
        move with x, and so does a value that would rather leave it.
        """
        grid = torch.arange(self.levels, device=x.device).to(x) / (self.levels - 1)
        inside = (self.eps_defend - (grid - x[..., None]).abs()) * (self.levels - 1) / SOFTNESS
        logits = self.density(purified).permute(0, 3, 1, 2, 4)
        mean: Tensor = ((logits + F.logsigmoid(inside)).softmax(-1) * grid).sum(-1)
        return mean

    def fit(self, run: TrainingRun) -> None:
        """First the density model, by its likelihood of clean images; then the classifier on clean images."""

        def negative_log_likelihood(x: Tensor, y: Tensor) -> Tensor:
            nearest = (x * (self.levels - 1)).round().long()
            logits = self.density(nearest.to(x) / (self.levels - 1))
            return F.cross_entropy(logits.flatten(0, 3), nearest.flatten())

        settings = schedule_for(run.info).settings() | {"lr": 3e-3, "weight_decay": 0.0}
        run.minimise("density model", self.density, negative_log_likelihood, optimizer="adam", **settings)
        freeze(self.density)
        natural_training(run, self.classifier, "classifier", network=self.network)


#: Default eps_defend below 16 pixels: the largest of 0.1, 0.15, 0.2, 0.25, 0.3 and 0.4 that keeps clean validation
#: accuracy on digits within 1.5 points of the best (99.4, 99.1, 98.8, 98.2, 98.2 and 90.3 %). Robustness had no say.
SMALL_EPS = 0.3


#: How soft the edges of the window are in the stand-in, in levels.
SOFTNESS = 0.3


class PixelCNN(nn.Module):
    """p(x) = Π p(x_i | x_1 … x_{i-1}) over pixels in raster order and channels within a pixel.

    Masked convolutions see the pixels above and to the left; the head adds the channels of the pixel itself that
    come before.

    Args:
        channels: of the image; levels: of each value; width: of the hidden layers; layers: masked convolutions.
    """

    def __init__(self, channels: int, levels: int, width: int, layers: int) -> None:
        super().__init__()
        self.channels, self.levels = channels, levels
        self.first = MaskedConv(channels, width, 5, sees_itself=False)
        self.rest = nn.ModuleList(MaskedConv(width, width, 3, sees_itself=True) for _ in range(layers - 1))
        self.earlier = nn.ModuleList(nn.Linear(channel + 1, width) for channel in range(channels - 1))
        self.heads = nn.ModuleList(nn.Linear(width, levels) for _ in range(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, H, W, C, levels)`` of every value of ``x (N, C, H, W)``, all at once."""
        z = 2 * x - 1
        hidden = self.first(z)
        for layer in self.rest:
            hidden = hidden + layer(hidden.relu())
        hidden, z = hidden.permute(0, 2, 3, 1), z.permute(0, 2, 3, 1)
        return torch.stack([self._head(hidden, z, channel) for channel in range(self.channels)], 3)

    def _head(self, hidden: Tensor, z: Tensor, channel: int) -> Tensor:
        """Logits ``(…, levels)`` of a channel from hidden ``(…, width)`` and the pixel's values ``z (…, C)``."""
        if channel:
            hidden = hidden + self.earlier[channel - 1](z[..., :channel])
        logits: Tensor = self.heads[channel](hidden.relu())
        return logits

    def generate(self, x: Tensor, choose: Callable[[Tensor, int, int, int], Tensor]) -> Tensor:
        """An image like ``x (N, C, H, W)``, each value chosen when those before it are known.

        Every layer keeps what it has computed, so that a pixel costs one position of each layer.

        Args:
            x: for its shape, type and device alone.
            choose: ``(logits (N, levels), row, column, channel) -> values (N,)`` in [0, 1].
        """
        n, channels, height, width = x.shape
        layers = [self.first, *self.rest]
        caches = [layer.cache(x) for layer in layers]
        taps = [layer.taps() for layer in layers]
        for row in range(height):
            for column in range(width):
                hidden = self.first.at(row, column, caches[0], taps[0])
                for layer, cache, weight in zip(layers[1:], caches[1:], taps[1:], strict=True):
                    layer.store_(cache, row, column, hidden.relu())
                    hidden = hidden + layer.at(row, column, cache, weight)
                z = x.new_zeros(n, channels)
                for channel in range(channels):
                    z[:, channel] = 2 * choose(self._head(hidden, z, channel), row, column, channel) - 1
                self.first.store_(caches[0], row, column, z)
        return (self.first.inside(caches[0]) + 1) / 2


class MaskedConv(nn.Conv2d):
    """A convolution that sees the pixels before each one in raster order, and itself or not.

    Args:
        inputs, outputs: channels; size: of the square kernel, odd.
        sees_itself: mask B of van den Oord et al. 2016 rather than A.
    """

    mask: Tensor

    def __init__(self, inputs: int, outputs: int, size: int, *, sees_itself: bool) -> None:
        super().__init__(inputs, outputs, size, padding=size // 2)
        self.reach = size // 2
        seen = torch.arange(size * size) < size * self.reach + self.reach + int(sees_itself)
        self.register_buffer("mask", seen.view(size, size), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.reach)

    def cache(self, x: Tensor) -> Tensor:
        """Zeros for an input of the height and width of ``x``, with the border that the kernel sees; channels last."""
        n, _, height, width = x.shape
        return x.new_zeros(n, height + 2 * self.reach, width + 2 * self.reach, self.in_channels)

    def store_(self, cache: Tensor, row: int, column: int, values: Tensor) -> None:
        """Put ``values (N, inputs)`` at a position."""
        cache[:, row + self.reach, column + self.reach] = values

    def inside(self, cache: Tensor) -> Tensor:
        """What was stored, ``(N, inputs, H, W)``."""
        r = self.reach
        return cache[:, r:-r, r:-r].permute(0, 3, 1, 2)

    def taps(self) -> Tensor:
        """The weights of the rows up to the pixel's own, ``(outputs, rows·size·inputs)``."""
        return (self.weight * self.mask)[:, :, : self.reach + 1].permute(0, 2, 3, 1).flatten(1)

    def at(self, row: int, column: int, cache: Tensor, taps: Tensor) -> Tensor:
        """The output at one position, ``(N, outputs)``."""
        r = self.reach
        window = cache[:, row : row + r + 1, column : column + 2 * r + 1]
        return F.linear(window.flatten(1), taps, self.bias)
