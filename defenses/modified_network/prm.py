"""Pixel robustness manipulation: a module that decides where the input gradient lies (Hwang et al. 2019)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.contracts.defense import Card, Defense, freeze
from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo
from defenses.parts.nets import classifier_for
from defenses.parts.recipes import augmentation_for, schedule_for, train_classifier
from defenses.parts.unet import UNet, scales_for

if TYPE_CHECKING:
    from bench.training.recipe import TrainingRun

#: Default λ, that of the examples in the authors' code. Clean validation accuracy on digits is 98.2 % at 0.5, 94.7 %
#: at 0.9 and 92.9 % at 1: a quarter of 64 pixels does not always tell the digit.
STRENGTH = 0.9
#: Sets of pixels to choose from: a lattice has four possible offsets.
SETS = 4


def lattice(number: Tensor, height: int, width: int) -> Tensor:
    """Sets of pixels, a quarter of the image each: every second pixel of every second row.

    Args:
        number: which offset, int64 ``(N,)`` of values 0 … 3.
        height, width: of the image.

    Returns:
        bool ``(N, height, width)``.
    """
    rows = torch.arange(height, device=number.device) % 2 == (number // 2)[:, None]
    columns = torch.arange(width, device=number.device) % 2 == (number % 2)[:, None]
    return rows[:, :, None] & columns[:, None, :]


class PRM(Defense):
    """g mixes the image with what a network makes of a designated quarter of its pixels; differentiable.

    g(x) = (1 - λ)·x + λ·h(x), where h rebuilds the image from the designated pixels: its first layer is not connected
    to the others, so that at λ = 1 their input gradient is zero.

    The description that we have says that the first layer is sparse and reaches about a quarter of the pixels, and
    that λ sets the intensity. Our choices: the pixels of :func:`lattice`; h, a U-Net (one of the networks that the
    description of the authors' code names for its module) trained to rebuild the image, in mean squared error, before
    the classifier and apart from it; the mixture above; a
    classifier trained on g(x).

    Args:
        data: decides the architectures.
        strength: λ, 0 to 1.
        designated_set: which of the four lattices, 0 to 3.
        width: channels of the U-Net's first scale; default 16 below 16 pixels, else 32.
        network: of the classifier, another architecture by its name (``defenses.parts.nets``); ``resnet18`` is the
            first that the authors' code names.
    """

    version = 1
    kinds = ("image",)
    trains_in_ball = False
    card = Card(
        title="Pixel robustness manipulation",
        summary=(
            "A network rebuilds the image from a designated quarter of its pixels, and the classifier sees a mixture "
            "of the two. "
            "The input gradient gathers at the designated pixels, and perturbations follow the gradient. "
            "Pixels outside the quarter were thought to become robust, and the place of a perturbation to become a "
            "matter of design. "
            "The mixture is differentiable and an attacker may change the designated pixels, so plain PGD breaks it. "
            "Confined to the other pixels PGD does less, which the measurement of this paper shows."
        ),
        paper="Hwang, Kim, Chun, Yoo, Kim, Han, Ha 2019, Where to be Adversarial Perturbations Added? "
        "Investigating and Manipulating Pixel Robustness Using Input Gradients",
        url="https://www.kc-ml2.com/posts/blog_Investigating",
        family="pixel robustness",
        tags=("deterministic", "differentiable", "input transformation"),
    )

    def __init__(
        self,
        data: DataInfo,
        strength: float = STRENGTH,
        designated_set: int = 0,
        width: int | None = None,
        network: str = "auto",
    ) -> None:
        super().__init__(data)
        channels, *size = data.shape
        if width is None:
            width = 16 if min(size) < 16 else 32
        if not 0 <= strength <= 1:
            raise InputError(f"prm: strength {strength} is outside 0..1")
        if not 0 <= designated_set < SETS:
            raise InputError(f"prm: designated_set {designated_set} is outside 0..{SETS - 1}")
        if width < 1:
            raise InputError(f"prm: width {width} must be at least 1")
        self.strength, self.designated_set = strength, designated_set
        # It sees which pixels are given, so that one network serves all sets.
        self.rebuilder = UNet(channels + 1, channels, width, scales_for(min(size)))
        self.network = network
        self.classifier = classifier_for(data, network)

    @property
    def designated(self) -> Tensor:
        """The pixels that h sees; bool ``(H, W)``."""
        return lattice(torch.tensor([self.designated_set]), *self.data.shape[1:])[0]

    def draw_sets(self, x: Tensor) -> Tensor:
        """The set of pixels for each image, int64 ``(N,)``: here always the same."""
        return torch.full((len(x),), self.designated_set, device=x.device)

    def rebuild(self, x: Tensor, sets: Tensor) -> Tensor:
        """h: the image as the pixels of ``sets (N,)`` tell it; ``(N, C, H, W)``."""
        given = lattice(sets, *x.shape[2:])[:, None].to(x)
        rebuilt: Tensor = self.rebuilder(torch.cat([x * given, given], 1))
        return rebuilt

    def transform(self, x: Tensor) -> Tensor:
        """(1 - λ)·x + λ·h(x); ``(N, C, H, W)``."""
        return (1 - self.strength) * x + self.strength * self.rebuild(x, self.draw_sets(x))

    def fit(self, run: TrainingRun) -> None:
        """First h, to rebuild the image; then the classifier on g(x)."""

        def squared_error(x: Tensor, y: Tensor) -> Tensor:
            return F.mse_loss(self.rebuild(x, self.draw_sets(x)), x)

        settings = schedule_for(run.info).settings() | {"lr": 2e-3, "weight_decay": 0.0}
        run.minimise(
            "rebuilder", self.rebuilder, squared_error, optimizer="adam", augment=augmentation_for(run.info), **settings
        )
        freeze(self.rebuilder)
        train_classifier(run, self, self.network)
