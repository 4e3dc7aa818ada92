"""Waveforms of a defense's gallery, as the points of inline SVG lines."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

#: Size of a plot in its own units; the page scales it.
WIDTH, HEIGHT = 480, 72
#: Longer waveforms are drawn as the smallest and largest value of this many stretches.
STRETCHES = 240


@dataclass(frozen=True)
class Wave:
    """One plot of an example: its key in ``CAPTIONS`` and, per channel, the points of a line from low to high."""

    key: str
    lines: list[str]
    low: float
    high: float
    samples: int

    @property
    def zero(self) -> float | None:
        """How far below the top the value 0 lies, None where it is outside."""
        return HEIGHT * self.high / (self.high - self.low) if self.low <= 0 <= self.high else None


def trace(key: str, waveform: Array, low: float, high: float) -> Wave:
    """The plot of a waveform ``(C, T)``.

    A transform may leave ``[low, high]`` or produce NaN: values are clipped for display and NaN is drawn as ``low``.
    """
    values = np.clip(np.nan_to_num(waveform.astype(np.float64), nan=low, posinf=high, neginf=low), low, high)
    lines = []
    for channel in values:
        x, y = _outline(channel)
        across = WIDTH * x / max(len(channel) - 1, 1)
        down = HEIGHT * (high - y) / (high - low)
        lines.append(" ".join(f"{a:.1f},{b:.1f}" for a, b in zip(across, down, strict=True)))
    return Wave(key, lines, low, high, waveform.shape[-1])


def difference(key: str, delta: Array) -> Wave:
    """The plot of a perturbation ``(C, T)`` on a scale of its own, as wide as its largest value."""
    finite = np.abs(delta[np.isfinite(delta)]).max(initial=0.0)
    largest = float(finite) or 1.0
    return trace(key, delta, -largest, largest)


def _outline(channel: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Positions and values to draw: all of them, or two per stretch, so that no peak is lost."""
    positions = np.arange(len(channel), dtype=np.float64)
    if len(channel) <= 2 * STRETCHES:
        return positions, channel
    parts = np.array_split(np.arange(len(channel)), STRETCHES)
    ends = [sorted((part[channel[part].argmin()], part[channel[part].argmax()])) for part in parts]
    chosen = np.asarray(ends).ravel()
    return positions[chosen], channel[chosen]
