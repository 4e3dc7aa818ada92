"""Wavelet denoising of image batches: soft thresholding of an orthogonal transform with BayesShrink thresholds.

Chang, Yu & Vetterli 2000, Adaptive Wavelet Thresholding for Image Denoising and Compression. Everything is batched
torch, differentiable by autograd wherever soft thresholding is, and treats every image and channel by itself.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bench.contracts.errors import InputError, did_you_mean

_ROOT3 = math.sqrt(3)
#: Low-pass filters (Daubechies 1992, table 6.1), of sum √2 and length 1.
WAVELETS: dict[str, tuple[float, ...]] = {
    "haar": (1 / math.sqrt(2), 1 / math.sqrt(2)),
    "db2": tuple(c / (4 * math.sqrt(2)) for c in (1 + _ROOT3, 3 + _ROOT3, 3 - _ROOT3, 1 - _ROOT3)),
}
#: Median of |N(0, 1)|, by which a median absolute deviation becomes a standard deviation.
_MEDIAN_ABS = 0.6744897501960817

#: The three detail subbands of one level: rows or columns high-pass, then both.
Details = tuple[Tensor, Tensor, Tensor]


def denoise(x: Tensor, sigma: float | None = None, wavelet: str = "haar", levels: int | None = None) -> Tensor:
    """Soft thresholding with BayesShrink: each subband's threshold is σ² / σ_signal (eq. 19 of the paper).

    Args:
        x: ``(N, C, H, W)``, any size; the borders are mirrored up to a multiple of ``2**levels``.
        sigma: standard deviation of the noise, in pixel units; None estimates it per image and channel from the
            finest diagonal subband (median of absolute values / 0.6745).
        wavelet: a name in ``WAVELETS``.
        levels: of the decomposition; default :func:`default_levels`.

    Returns:
        Shaped like ``x``; not clipped.

    Raises:
        InputError: for an unknown wavelet, a negative sigma or fewer than one level.
    """
    height, width = x.shape[2:]
    levels = default_levels(height, width) if levels is None else levels
    if levels < 1:
        raise InputError(f"wavelet denoising: levels {levels} must be at least 1")
    if sigma is not None and not sigma >= 0:
        raise InputError(f"wavelet denoising: sigma {sigma} must not be negative")
    multiple = 2**levels
    rows, columns = _mirrored(height, multiple, x), _mirrored(width, multiple, x)
    approximation, details = decompose(x[:, :, rows][..., columns], wavelet, levels)
    if sigma is None:
        deviation = details[0][2].flatten(2).abs().quantile(0.5, dim=2) / _MEDIAN_ABS
        variance = deviation[..., None, None] ** 2
    else:
        variance = torch.full((), sigma**2).to(x)
    shrunk = [(_shrink(a, variance), _shrink(b, variance), _shrink(c, variance)) for a, b, c in details]
    return reconstruct(approximation, shrunk, wavelet)[..., :height, :width]


def default_levels(height: int, width: int) -> int:
    """Levels that leave about 8 pixels of approximation: 1 for 8×8, 2 for 32×32, 3 for 64×64."""
    return max(1, int(math.log2(min(height, width))) - 3)


def decompose(x: Tensor, wavelet: str, levels: int) -> tuple[Tensor, list[Details]]:
    """The orthogonal wavelet transform with periodic borders.

    ``x (N, C, H, W)`` with H and W multiples of ``2**levels``. Returns the coarsest approximation and the details,
    finest level first; together they hold as many values as ``x``, with the same sum of squares.
    """
    low, high = _filters(wavelet)
    details: list[Details] = []
    for _ in range(levels):
        smooth, rough = _analyse(x, low, 3), _analyse(x, high, 3)
        x = _analyse(smooth, low, 2)
        details.append((_analyse(smooth, high, 2), _analyse(rough, low, 2), _analyse(rough, high, 2)))
    return x, details


def reconstruct(approximation: Tensor, details: list[Details], wavelet: str) -> Tensor:
    """The inverse of :func:`decompose`, which is its transpose."""
    low, high = _filters(wavelet)
    x = approximation
    for a, b, c in reversed(details):
        smooth = _synthesise(x, low, 2) + _synthesise(a, high, 2)
        rough = _synthesise(b, low, 2) + _synthesise(c, high, 2)
        x = _synthesise(smooth, low, 3) + _synthesise(rough, high, 3)
    return x


def _filters(wavelet: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Low-pass and high-pass filter; the second is the first reversed with alternating signs."""
    if wavelet not in WAVELETS:
        raise InputError(f"wavelet {wavelet!r} does not exist{did_you_mean(wavelet, WAVELETS)}")
    low = WAVELETS[wavelet]
    return low, tuple((-1) ** k * c for k, c in enumerate(reversed(low)))


def _analyse(x: Tensor, taps: tuple[float, ...], dim: int) -> Tensor:
    """Correlate with ``taps`` along ``dim``, periodically, and keep every second value."""
    even, odd = x.unflatten(dim, (-1, 2)).unbind(dim + 1)
    parts = (even, odd)
    return torch.stack([c * parts[k % 2].roll(-(k // 2), dim) for k, c in enumerate(taps)]).sum(0)


def _synthesise(y: Tensor, taps: tuple[float, ...], dim: int) -> Tensor:
    """The transpose of :func:`_analyse`."""
    even = torch.stack([c * y.roll(k, dim) for k, c in enumerate(taps[::2])]).sum(0)
    odd = torch.stack([c * y.roll(k, dim) for k, c in enumerate(taps[1::2])]).sum(0)
    return torch.stack([even, odd], dim + 1).flatten(dim, dim + 1)


def _shrink(band: Tensor, variance: Tensor) -> Tensor:
    """Soft thresholding of one subband ``(N, C, h, w)`` at σ² / σ_signal, σ_signal² = max(mean square − σ², 0)."""
    signal = (band.square().mean((2, 3), keepdim=True) - variance).clamp_min(torch.finfo(band.dtype).eps).sqrt()
    return band.sign() * (band.abs() - variance / signal).clamp_min(0)


def _mirrored(size: int, multiple: int, x: Tensor) -> Tensor:
    """Indices of ``size`` pixels and, after them, their mirror images up to the next multiple."""
    index = torch.arange(size + -size % multiple, device=x.device) % (2 * size)
    return torch.where(index < size, index, 2 * size - 1 - index)
