"""Random image transforms for the barrage (Raff et al. 2019, supplement): each example draws its own parameters.

Every transform takes images ``(N, C, H, W)`` and a ``strength`` in (0, 1] that scales the range of its parameters, and
returns images of the same shape, not clipped. Sizes are relative to the image where the paper has pixels of ImageNet.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from defenses.parts.jpeg_codec import compress

Transform = Callable[[Tensor, float], Tensor]


def groups_for(channels: int) -> tuple[Transform, ...]:
    """The groups that apply to images of so many channels."""
    return GREY if channels == 1 else (*GREY, colour)


def precision(x: Tensor, strength: float) -> Tensor:
    """Each channel rounded to between 200 and, at full strength, 8 levels. Cuts the graph."""
    fewest = 8 ** strength * 200 ** (1 - strength)
    levels = _uniform(x, fewest, 200, channels=True).round()
    return (x.detach() * levels).round() / levels


def jpeg(x: Tensor, strength: float) -> Tensor:
    """A real JPEG codec (Pillow) at a quality between 95 and, at full strength, 55. Cuts the graph."""
    qualities = _uniform(x, 95 - 40 * strength, 95).round().flatten().tolist()
    return compress(x, [int(quality) for quality in qualities])


def swirl(x: Tensor, strength: float) -> Tensor:
    """Rotation by up to ±2·strength radians at a random centre, fading away from it."""
    centre = torch.cat([_uniform(x, -0.5, 0.5), _uniform(x, -0.5, 0.5)], 3)
    angle, reach = _uniform(x, -2 * strength, 2 * strength), _uniform(x, 0.1, 1.0)
    offset = _grid(x) - centre
    theta = angle * torch.exp(-offset.norm(dim=3, keepdim=True) / reach)
    across, down = offset.split(1, dim=3)
    turned = torch.cat([theta.cos() * across - theta.sin() * down, theta.sin() * across + theta.cos() * down], 3)
    return _sample(x, centre + turned)


def noise(x: Tensor, strength: float) -> Tensor:
    """Gaussian noise, speckle (noise that grows with the value), or salt and pepper, each a third of the time."""
    kind = torch.rand(len(x), 1, 1, 1, device=x.device)
    drawn = _uniform(x, 0, 0.1 * strength) * torch.randn_like(x)
    spots = torch.rand_like(x) < _uniform(x, 0, 0.1 * strength)
    salted = torch.where(spots, torch.rand_like(x).round(), x)
    return torch.where(kind < 1 / 3, x + drawn, torch.where(kind < 2 / 3, x + 2 * drawn * x, salted))


def fourier(x: Tensor, strength: float) -> Tensor:
    """Every Fourier coefficient times 0.98 to 1.02; a random share of them, the mean excepted, set to zero."""
    spectrum = torch.fft.rfft2(x)
    real = spectrum.real
    factor = 0.98 + 0.04 * torch.rand_like(real)
    kept = torch.rand_like(real) >= _uniform(x, 0, 0.5 * strength)
    kept[..., 0, 0] = True
    back: Tensor = torch.fft.irfft2(spectrum * factor * kept, s=x.shape[2:])
    return back


def zoom(x: Tensor, strength: float) -> Tensor:
    """A random part of the image, each side at least 1 - 0.4·strength of the whole, resized to fill it."""
    scale = torch.cat([_uniform(x, 1 - 0.4 * strength, 1), _uniform(x, 1 - 0.4 * strength, 1)], 3)
    shift = torch.cat([_uniform(x, -1, 1), _uniform(x, -1, 1)], 3) * (1 - scale)
    return _sample(x, scale * _grid(x) + shift)


def contrast(x: Tensor, strength: float) -> Tensor:
    """Stretched so that two percentiles, up to 10·strength from the ends, become 0 and 1."""
    values = x.flatten(1).sort(1).values
    last = values.shape[1] - 1
    low = values.gather(1, (_uniform(x, 0, 0.1 * strength).view(-1, 1) * last).long())
    high = values.gather(1, (_uniform(x, 1 - 0.1 * strength, 1).view(-1, 1) * last).long())
    # An image of almost one value stays almost one value.
    return (x - low[..., None, None]) / (high - low).clamp_min(0.1)[..., None, None]


def blur(x: Tensor, strength: float) -> Tensor:
    """A Gaussian of up to ``strength`` pixels; from 16 pixels on a 3×3 median half of the time."""
    sigma = _uniform(x, 0.1, max(0.1, strength))
    reach = math.ceil(2 * strength)
    weights = torch.exp(-((torch.arange(-reach, reach + 1, device=x.device) / sigma) ** 2) / 2)
    weights = weights / weights.sum(3, keepdim=True)
    smooth = x
    for pad, dim in (((reach, reach, 0, 0), 3), ((0, 0, reach, reach), 2)):
        shifted = F.pad(smooth, pad, mode="replicate").unfold(dim, 2 * reach + 1, 1)
        smooth = (shifted * weights[..., None, :]).sum(4)
    if min(x.shape[2:]) < 16:
        return smooth
    windows = F.pad(x, (1, 1, 1, 1), mode="replicate").unfold(2, 3, 1).unfold(3, 3, 1).flatten(4)
    median = windows.median(4).values
    return torch.where(torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5, smooth, median)


def colour(x: Tensor, strength: float) -> Tensor:
    """Towards grey by a random share, and a random offset to each channel."""
    share = _uniform(x, 0, strength)
    return x + share * (x.mean(1, keepdim=True) - x) + _uniform(x, -0.1 * strength, 0.1 * strength, channels=True)


#: Groups for any number of channels.
GREY: tuple[Transform, ...] = (precision, jpeg, swirl, noise, fourier, zoom, contrast, blur)
#: Those that return no graph.
NOT_DIFFERENTIABLE = frozenset({precision, jpeg})


def _uniform(x: Tensor, low: float, high: float, channels: bool = False) -> Tensor:
    """One number per example, or per example and channel, that broadcasts to ``x``."""
    shape = (len(x), x.shape[1] if channels else 1, 1, 1)
    return low + (high - low) * torch.rand(shape, dtype=x.dtype, device=x.device)


def _grid(x: Tensor) -> Tensor:
    """Pixel centres in grid_sample's coordinates, ``(1, H, W, 2)``, column first."""
    rows, columns = ((2 * torch.arange(size, dtype=x.dtype, device=x.device) + 1) / size - 1 for size in x.shape[2:])
    return torch.stack(torch.meshgrid(columns, rows, indexing="xy"), 2)[None]


def _sample(x: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
