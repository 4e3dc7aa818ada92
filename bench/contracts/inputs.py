"""What the inputs of a data set look like: their shape, the box of their values, their kind."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.contracts.errors import InputError
from bench.contracts.words import KINDS, Kind


@dataclass(frozen=True)
class InputSpec:
    """One input of a data set.

    Attributes:
        shape: without the batch, channels first: ``(C, H, W)`` of an image, ``(C, T)`` of a waveform.
        low, high: the box that every value lies in. Radii of threat models are in the same units.
        kind: how an input is shown: ``image`` or ``waveform``.
        levels: how many evenly spaced values, from low to high, the data's files can hold: 256 in 8-bit images; None
            where that is not known, or values are continuous.
    """

    shape: tuple[int, ...]
    low: float = 0.0
    high: float = 1.0
    kind: Kind = "image"
    levels: int | None = None

    def __post_init__(self) -> None:
        if not self.shape or any(size < 1 for size in self.shape):
            raise InputError(f"input shape: {self.shape} must be sizes of at least 1")
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise InputError(f"input box: low {self.low} must be below high {self.high}, both finite")
        if self.kind not in KINDS:
            raise InputError(f"input kind: {self.kind!r} is not one of {', '.join(KINDS)}")
        if self.levels is not None and self.levels < 2:
            raise InputError(f"input levels: {self.levels} must be at least 2, or None")


@dataclass(frozen=True)
class DataInfo:
    """What a defense may know about the data it will classify: a name, what an input looks like, a class count."""

    name: str
    input: InputSpec
    num_classes: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input, without the batch."""
        return self.input.shape

    @property
    def large(self) -> bool:
        """Whether it is images of 32 pixels and more to a side, where each layer before a network borrows its weights.

        From there on a training costs too much, and its weights take too much space, for one to each layer.
        """
        return self.input.kind == "image" and min(self.shape[1:]) >= 32


def check_inputs(x: Tensor, spec: InputSpec, what: str = "inputs") -> None:
    """Raise :class:`InputError` unless ``x`` is a finite floating batch of the spec's shape inside its box."""
    if x.ndim == 0 or tuple(x.shape[1:]) != spec.shape or not x.is_floating_point():
        shape = ", ".join(["N", *map(str, spec.shape)])
        raise InputError(f"{what}: expected floating-point ({shape}), got {x.dtype} {tuple(x.shape)}")
    if not torch.isfinite(x).all():
        raise InputError(f"{what}: contain NaN or infinity")
    if x.numel() and (x.min() < spec.low or x.max() > spec.high):
        box = f"[{spec.low:g}, {spec.high:g}]"
        raise InputError(f"{what}: values span [{x.min():.4g}, {x.max():.4g}], outside {box}")


def check_labels(y: Tensor, num_classes: int, what: str = "labels") -> None:
    """Raise :class:`InputError` unless ``y`` is an int64 ``(N,)`` vector of classes below ``num_classes``."""
    if y.ndim != 1 or y.dtype != torch.int64:
        raise InputError(f"{what}: expected int64 (N,), got {y.dtype} {tuple(y.shape)}")
    if y.numel() and (y.min() < 0 or y.max() >= num_classes):
        bad = y[(y < 0) | (y >= num_classes)][0].item()
        raise InputError(f"{what}: label {bad} is outside 0..{num_classes - 1}")


def as_inputs(x: object, like: Tensor, what: str = "x") -> Tensor:
    """Inputs that a caller holds, as a tensor.

    Args:
        x: a tensor, which is taken as it is; floating-point NumPy arrays, or (nested) lists of numbers or tensors.
        like: whose dtype and device arrays and lists are converted to.

    Raises:
        InputError: for bytes (uint8), which stand for no value in a box yet, and what is no array of numbers.
    """
    made = _as_tensor(x, what)
    if made.dtype == torch.uint8:
        raise InputError(f"{what}: uint8; divide by 255, so that values are floating-point in [0, 1]")
    if x is made:
        return made
    return made.to(like) if made.is_floating_point() else made.to(like.device)


def as_labels(y: object, device: torch.device, what: str = "y") -> Tensor:
    """Labels that a caller holds, as a tensor: a tensor as it is; NumPy integers of any size, or a list, as int64.

    Raises:
        InputError: for what is no array of integers.
    """
    made = _as_tensor(y, what)
    if made is not y:
        if made.is_floating_point() or made.dtype == torch.bool:
            raise InputError(f"{what}: expected integers, the class of each input, got {made.dtype}")
        made = made.to(device, torch.int64)
    return made


def _as_tensor(value: Any, what: str) -> Tensor:
    if isinstance(value, Tensor):
        return value
    try:
        if isinstance(value, (list, tuple)) and value and all(isinstance(part, Tensor) for part in value):
            return torch.stack([part.detach() for part in value])
        array = np.asarray(value)
        if array.dtype.kind in "biuf":
            return torch.from_numpy(array.copy())
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[:1]
        raise InputError(f"{what}: is no array of numbers: {''.join(reason)}") from None
    raise InputError(f"{what}: expected a tensor, a NumPy array or a list of numbers, got {type(value).__name__}")
