"""Random resizing and padding (Xie et al. 2018)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.contracts.defense import Card, Claim, Defense
from bench.contracts.inputs import DataInfo
from defenses.parts.nets import classifier_for
from defenses.parts.recipes import existing_classifier, train_classifier

if TYPE_CHECKING:
    from bench.training.recipe import TrainingRun


class RandomResizePad(Defense):
    """g resizes each image to a random size and pads it with zeros, at a random place, to a fixed larger one.

    Differentiable. Every example draws its own size and place. Sizes grow by up to an eighth (two pixels at
    least): 32 to 36 pixels, 8 to 10; the paper grows 299 to at most 331.

    Args:
        data: decides the architecture and the sizes.
        network: another architecture by its name (``defenses.parts.nets``).
    """

    version = 1
    kinds = ("image",)
    trains_in_ball = False
    card = Card(
        title="Random resize and pad",
        summary=(
            "Each image is resized to a random, slightly larger size and padded with zeros at a random place. "
            "The perturbation was thought to be destroyed, because an attacker cannot know the draw. "
            "Both operations are differentiable, so expectation over transformation averages the gradient "
            "over many draws. Athalye et al. 2018 broke it that way, down to 0 % on ImageNet. "
            "The draws are so alike that the gradient of one already helps against the others."
        ),
        paper="Xie, Wang, Zhang, Ren, Yuille 2018, Mitigating Adversarial Effects Through Randomization",
        url="https://arxiv.org/abs/1711.01991",
        family="randomised",
        tags=("randomised", "differentiable", "input transformation"),
        breaks=(
            Claim("imagenet", "linf 0.031", None, 0.0, "EOT", "Athalye et al. 2018, table 1"),
        ),
    )  # fmt: skip
    randomized = True

    def __init__(self, data: DataInfo, network: str = "auto") -> None:
        super().__init__(data)
        self.weights_of = existing_classifier(data)
        _, height, width = data.shape
        self.growth = max(2, min(height, width) // 8)
        self.network = network
        self.classifier = classifier_for(data, network)

    def transform(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to ``(N, C, H + growth, W + growth)``; draws from torch's global generator."""
        extra = torch.randint(self.growth + 1, (len(x),), device=x.device)
        room = self.growth - extra
        top = torch.floor(torch.rand(len(x), device=x.device) * (room + 1))
        left = torch.floor(torch.rand(len(x), device=x.device) * (room + 1))
        return resize_and_pad(x, extra, top, left, self.growth)

    def fit(self, run: TrainingRun) -> None:
        """Cross-entropy on randomly resized and padded images."""
        train_classifier(run, self, self.network)


def resize_and_pad(x: Tensor, extra: Tensor, top: Tensor, left: Tensor, growth: int) -> Tensor:
    """Resize bilinearly by ``extra (N,)`` pixels and place at ``top``, ``left (N,)`` on zeros.

    Returns ``(N, C, H + growth, W + growth)``, differentiable in ``x``.
    """
    _, _, height, width = x.shape
    rows, row_inside = _coordinates(height, height + growth, height + extra, top)
    columns, column_inside = _coordinates(width, width + growth, width + extra, left)
    grid = torch.stack(
        torch.broadcast_tensors(columns[:, None, :], rows[:, :, None]),
        dim=-1,
    )
    resized = F.grid_sample(x, grid.to(x), mode="bilinear", padding_mode="border", align_corners=False)
    inside = (row_inside[:, :, None] & column_inside[:, None, :])[:, None]
    return resized * inside.to(x)


def _coordinates(size: int, out: int, resized: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Where each of ``out`` positions reads from, in grid_sample's [-1, 1], and whether it is inside the image."""
    position = torch.arange(out, device=start.device)[None] - start[:, None]
    share = (position + 0.5) / resized[:, None]
    return 2 * share - 1, (position >= 0) & (position < resized[:, None])
