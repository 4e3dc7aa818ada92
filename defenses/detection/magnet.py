"""MagNet: how far is x from what auto-encoders of clean images make of it? (Meng & Chen 2017)"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.contracts.defense import Card, Defense
from bench.contracts.detector import Detector
from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo
from defenses.parts.detection import Standardised, in_batches

if TYPE_CHECKING:
    from bench.training.recipe import TrainingRun

#: Of the noise on the images that the auto-encoders learn from (the paper's v_noise on MNIST).
NOISE = 0.1
#: Temperatures at which the divergence of two predictions is taken (the paper's on CIFAR-10).
TEMPERATURES = (10.0, 40.0)


class AutoEncoder(nn.Module):
    """The paper's two for MNIST (table 1): 3×3 convolutions with sigmoids, with an average pool or without.

    Args:
        channels: of the images; width: of the hidden layers (3 in the paper).
        pool: halve height and width inside, which takes images of even sizes.
    """

    def __init__(self, channels: int, width: int, pool: bool) -> None:
        super().__init__()

        def layer(inputs: int, outputs: int) -> list[nn.Module]:
            return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.Sigmoid()]

        inner = [nn.AvgPool2d(2), *layer(width, width), *layer(width, width), nn.Upsample(scale_factor=2)]
        outer = [*layer(channels, width), *(inner if pool else []), *layer(width, width), *layer(width, channels)]
        self.layers = nn.Sequential(*outer)

    def forward(self, x: Tensor) -> Tensor:
        rebuilt: Tensor = self.layers(x)
        return rebuilt


class MagNet(Detector):
    """The largest of MagNet's detectors: errors of two auto-encoders, and divergences of the predictions for x and
    for what an auto-encoder makes of it, each in units of its spread on clean images.

    The paper rejects where any detector exceeds a threshold of its own; here the harness sets one threshold for all.
    Errors are the mean square of the encoder with a pool, the mean absolute value of the one without; divergences are
    Jensen-Shannon's at two temperatures. Both encoders and the noise they learn from are the paper's for MNIST, for
    colour images too, where the authors have a single one, without a pool. The paper's reformer, which classifies the
    auto-encoder's image, is a transform and no part of a detector.

    Args:
        data: of the images.
        width: channels inside the auto-encoders.
    """

    version = 1
    kinds = ("image",)
    trains_in_ball = False
    card = Card(
        title="MagNet",
        summary=(
            "Auto-encoders of clean images rebuild the input, which is rejected when it is far from what comes out. "
            "A second test compares the predictions for both. "
            "Adversarial images were thought to leave the manifold that an auto-encoder has learned. "
            "Carlini & Wagner 2017 attack classifier and auto-encoders together, and need little more distortion. "
            "Drawing one of many auto-encoders does not help, for an attack transfers between them."
        ),
        paper="Meng, Chen 2017, MagNet: A Two-Pronged Defense against Adversarial Examples",
        url="https://arxiv.org/abs/1705.09064",
        family="detector",
        tags=("deterministic", "differentiable", "rejects inputs"),
    )

    def __init__(self, data: DataInfo, width: int = 3) -> None:
        super().__init__(data)
        if width < 1:
            raise InputError(f"magnet: width {width} must be at least 1")
        channels, *size = data.shape
        self.coarse = AutoEncoder(channels, width, pool=all(side % 2 == 0 for side in size))
        self.fine = AutoEncoder(channels, width, pool=False)
        self.standardised = Standardised(2 + len(TEMPERATURES))

    def measured(self, x: Tensor) -> Tensor:
        """What every detector says of x, ``(N, 4)``: two errors, two divergences."""
        rebuilt = self.fine(x)
        scores = [(x - self.coarse(x)).square().flatten(1).mean(1), (x - rebuilt).abs().flatten(1).mean(1)]
        one, two = self.guarded(x), self.guarded(rebuilt)
        scores += [jensen_shannon(one / t, two / t) for t in TEMPERATURES]
        return torch.stack(scores, 1)

    def detect(self, x: Tensor) -> Tensor:
        """The largest of the standardised scores; ``(N,)``."""
        scores: Tensor = self.standardised(self.measured(x))
        return scores.amax(1)

    def fit(self, run: TrainingRun, classifier: Defense) -> None:
        """The auto-encoders on noisy training images, by squared error; then the spread on the validation images."""
        for stage, encoder in (("coarse auto-encoder", self.coarse), ("fine auto-encoder", self.fine)):

            def loss(x: Tensor, y: Tensor, encoder: nn.Module = encoder) -> Tensor:
                noisy = (x + NOISE * torch.randn_like(x)).clamp(self.data.input.low, self.data.input.high)
                return F.mse_loss(encoder(noisy), x)

            run.minimise(stage, encoder, loss, epochs=100, batch_size=64, lr=1e-2, optimizer="adam")
        x = torch.cat([part for part, _ in run.validation.batches(256)]).to(run.device)
        self.standardised.fit_(in_batches(self.measured, x))


def jensen_shannon(one: Tensor, two: Tensor) -> Tensor:
    """Jensen-Shannon divergence ``(N,)``, in nats, of the softmaxes of two ``(N, K)`` logits."""
    p, q = one.log_softmax(1), two.log_softmax(1)
    middle = torch.logaddexp(p, q) - torch.log(torch.tensor(2.0, device=p.device))
    return 0.5 * ((p.exp() * (p - middle)).sum(1) + (q.exp() * (q - middle)).sum(1))
