"""A U-Net from images to images, for defenses that rebuild or denoise their input."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class UNet(nn.Module):
    """Convolutions at several scales with lateral connections (the DUNET of Liao et al. 2018, figure 3).

    The last layer is zero at first, so that an untrained network gives zeros.

    Args:
        inputs: channels that it sees; outputs: channels that it gives.
        width: channels of the first scale; the lower ones have twice as many.
        scales: how often height and width are halved; any size works.
    """

    def __init__(self, inputs: int, outputs: int, width: int, scales: int) -> None:
        super().__init__()
        widths = [width] + [2 * width] * scales
        self.down = nn.ModuleList([_block(inputs, width)])
        self.down.extend(_block(a, b, stride=2) for a, b in pairwise(widths))
        rising = widths[::-1]
        self.up = nn.ModuleList(_block(a + b, b) for a, b in pairwise(rising))
        self.last = nn.Conv2d(width, outputs, 1)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, inputs, H, W)`` to ``(N, outputs, H, W)``."""
        lateral: list[Tensor] = []
        for block in self.down:
            x = block(x)
            lateral.append(x)
        lateral.pop()
        for block in self.up:
            left = lateral.pop()
            x = block(torch.cat([F.interpolate(x, left.shape[2:], mode="bilinear", align_corners=False), left], 1))
        out: Tensor = self.last(x)
        return out


def scales_for(size: int) -> int:
    """How often a U-Net halves an image of ``size`` pixels: to 4 pixels, four times at most as Liao et al. do."""
    return max(1, min(4, (size // 4).bit_length() - 1))


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )
