"""The threat model: what an adversarial input may look like."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from bench.contracts.errors import InputError

Norm = Literal["linf", "l2", "l1", "l0"]
NORMS: tuple[str, ...] = get_args(Norm)


@dataclass(frozen=True)
class ThreatModel:
    """A ball of radius ``eps`` around x in ``norm``, intersected with the box ``[low, high]``.

    ``eps`` is in units of the [0, 1] pixel scale; for ``l0`` it is a number of pixels (a pixel counts once,
    however many of its channels change).
    """

    norm: Norm
    eps: float
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise InputError(f"threat_model.norm: {self.norm!r} is not one of {', '.join(NORMS)}")
        if not (math.isfinite(self.eps) and self.eps > 0):
            raise InputError(f"threat_model.eps: {self.eps!r} must be a finite number greater than 0")
        if not self.low < self.high:
            raise InputError(f"threat_model box: low {self.low} must be below high {self.high}")

    @property
    def tolerance(self) -> float:
        """How far beyond ``eps`` float32 rounding may carry an honest projection: 1e-6 + 1e-5·eps."""
        return 1e-6 + 1e-5 * self.eps

    def __str__(self) -> str:
        return f"{self.norm} {format_eps(self.eps)}"


def format_eps(eps: float) -> str:
    """``0.2`` where a short decimal says it, ``8/255`` where that is how the field writes it, else four digits."""
    if abs(eps - round(eps, 3)) < 1e-9:
        return f"{eps:g}"
    scaled = eps * 255
    return f"{round(scaled)}/255" if abs(scaled - round(scaled)) < 1e-6 else f"{eps:.4g}"


def distances(x: Tensor, x_adv: Tensor) -> dict[str, Tensor]:
    """Distances between two batches ``(N, C, H, W)``, computed in float64.

    Returns a dict norm → float64 ``(N,)``; ``l0`` counts pixels in which any channel differs.
    """
    delta = (x_adv.double() - x.double()).flatten(2)
    flat = delta.flatten(1)
    return {
        "linf": flat.abs().amax(1),
        "l2": flat.norm(dim=1),
        "l1": flat.abs().sum(1),
        "l0": (delta != 0).any(1).sum(1).double(),
    }


def check_images(x: Tensor, what: str = "images") -> None:
    """Raise :class:`InputError` unless ``x`` is a finite floating ``(N, C, H, W)`` batch in [0, 1]."""
    if x.ndim != 4 or not x.is_floating_point():
        raise InputError(f"{what}: expected floating-point (N, C, H, W), got {x.dtype} {tuple(x.shape)}")
    if not torch.isfinite(x).all():
        raise InputError(f"{what}: contain NaN or infinity")
    if x.numel() and (x.min() < 0 or x.max() > 1):
        raise InputError(f"{what}: values span [{x.min():.4g}, {x.max():.4g}], outside [0, 1]")


def check_labels(y: Tensor, num_classes: int, what: str = "labels") -> None:
    """Raise :class:`InputError` unless ``y`` is an int64 ``(N,)`` vector of classes below ``num_classes``."""
    if y.ndim != 1 or y.dtype != torch.int64:
        raise InputError(f"{what}: expected int64 (N,), got {y.dtype} {tuple(y.shape)}")
    if y.numel() and (y.min() < 0 or y.max() >= num_classes):
        bad = y[(y < 0) | (y >= num_classes)][0].item()
        raise InputError(f"{what}: label {bad} is outside 0..{num_classes - 1}")
