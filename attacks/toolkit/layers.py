"""Layers for inputs with any number of dimensions beside the channels: one (waveforms), two (images) or three."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.contracts.errors import NotApplicable

_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def dimensions(shape: tuple[int, ...], what: str) -> int:
    """How many dimensions an input of ``shape`` has beside the channels.

    Raises:
        NotApplicable: where there is none, or more than three; ``what`` is convolutional and needs some.
    """
    dims = len(shape) - 1
    if dims not in _MODES:
        raise NotApplicable(f"{what} is convolutional: it takes waveforms or images, not inputs of shape {shape}")
    return dims


def convolution(dims: int) -> Callable[..., nn.Module]:
    """The convolution over ``dims`` dimensions."""
    kinds: dict[int, Callable[..., nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
    return kinds[dims]


def average_pool(dims: int, size: int) -> nn.Module:
    """Averages over a grid of ``size`` cells in each of ``dims`` dimensions."""
    return {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}[dims](size)


def resized(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """``x (M, C, …)`` interpolated linearly to ``(M, C, *size)``."""
    return F.interpolate(x, size, mode=_MODES[x.ndim - 2], align_corners=False)


def convolved(x: Tensor, weights: Tensor) -> Tensor:
    """``x (M, C, …)`` convolved along every dimension with ``weights`` of odd length, zeros beyond the border."""
    dims, channels, radius = x.ndim - 2, x.shape[1], len(weights) // 2
    convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[dims]
    kernel = weights.view(1, 1, *[1] * (dims - 1), -1).expand(channels, *[-1] * (dims + 1))
    for axis in range(dims):  # the kernel is separable
        padding = [radius * (other == axis) for other in range(dims)]
        x = convolve(x, torch.movedim(kernel, -1, axis + 2), padding=padding, groups=channels)
    return x
