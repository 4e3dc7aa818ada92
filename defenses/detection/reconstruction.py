"""Reconstruction from the logits: a decoder rebuilds the image, a detector reads what came out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.contracts.defense import Card, Defense
from bench.contracts.detector import Detector
from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo
from defenses.parts.detection import binary_loss, examples_of_pgd, log_odds, minimise_detector, two_way

if TYPE_CHECKING:
    from bench.training.recipe import TrainingRun

Reads = Literal["reconstruction", "residual"]
#: Width of the decoder's hidden layer.
HIDDEN = 128


class Decoder(nn.Module):
    """Logits ``(N, K)`` to inputs ``(N, *shape)`` in the box: two linear layers."""

    def __init__(self, data: DataInfo) -> None:
        super().__init__()
        self.spec = data.input
        size = math.prod(data.shape)
        self.layers = nn.Sequential(nn.Linear(data.num_classes, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, size))

    def forward(self, logits: Tensor) -> Tensor:
        share: Tensor = self.layers(logits).sigmoid().view(len(logits), *self.spec.shape)
        return self.spec.low + (self.spec.high - self.spec.low) * share


class Reconstruction(Detector):
    """The probability, as log odds, that a network gives to a reconstruction of x to come from an adversarial image.

    A decoder is trained to rebuild clean images from the classifier's logits. Then a network of a classifier's
    architecture with two logits learns to tell the reconstructions of clean images from those of PGD's. It reads the
    reconstruction alone, or how far it is from x.

    Args:
        data: decides both networks.
        reads: what the second network is given: reconstruction, or residual, which is x minus it.
        network: of the second network, by its name (``defenses.parts.nets``).
    """

    version = 1
    kinds = ("image",)
    card = Card(
        title="Reconstruction from the logits",
        summary=(
            "A decoder rebuilds the image from the classifier's logits, and a second network reads what came out. "
            "It answers with the probability that the image was adversarial. "
            "Logits that an attack has moved were thought to give reconstructions that no clean image gives. "
            "All of it is differentiable, so an attack goes through decoder and detector at once. "
            "Where only the reconstruction is read, any input with a clean image's logits passes."
        ),
        paper="Frosst, Sabour, Hinton 2018, "
        "DARCCC: Detecting Adversaries by Reconstruction from Class Conditional Capsules",
        url="https://arxiv.org/abs/1811.06969",
        family="detector",
        tags=("deterministic", "differentiable", "rejects inputs"),
    )

    def __init__(self, data: DataInfo, reads: Reads = "reconstruction", network: str = "auto") -> None:
        super().__init__(data)
        if reads not in get_args(Reads):
            raise InputError(f"reconstruction: reads {reads!r} is not one of {', '.join(get_args(Reads))}")
        self.reads, self.network = reads, network
        self.decoder = Decoder(data)
        self.reader = two_way(data, network)

    def detect(self, x: Tensor) -> Tensor:
        """Log odds of being adversarial; ``(N,)``."""
        rebuilt = self.decoder(self.guarded(x))
        return log_odds(self.reader(rebuilt if self.reads == "reconstruction" else x - rebuilt))

    def fit(self, run: TrainingRun, classifier: Defense) -> None:
        """The decoder on clean images, by squared error; then the network on clean and PGD's images, a half each."""

        def error(x: Tensor, y: Tensor) -> Tensor:
            return F.mse_loss(self.decoder(classifier(x)), x)

        run.minimise("decoder", self.decoder, error, epochs=40, batch_size=64, lr=1e-3, optimizer="adam")
        self.decoder.requires_grad_(False)

        def read(x: Tensor) -> Tensor:
            with torch.no_grad():
                rebuilt = self.decoder(classifier(x))
            logits: Tensor = self.reader(rebuilt if self.reads == "reconstruction" else x - rebuilt)
            return logits

        def loss(x: Tensor, y: Tensor) -> Tensor:
            return binary_loss(read(torch.cat([x, examples_of_pgd(classifier, x, y, run.threat)])))

        minimise_detector(run, "reader of reconstructions", self.reader, loss, self.network)
