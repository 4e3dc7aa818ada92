"""A defense's gallery: from ``gallery.safetensors`` to small PNG files, or to plots where inputs are waveforms."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load

from bench.contracts.errors import InputError
from bench.storing.records import GalleryEntry
from bench.storing.store import unzipped
from bench.studies.input_gradients.record import InputGradients
from leaderboard.waveforms import Wave, difference, trace

Array = npt.NDArray[np.float32]

#: Keys of gallery.safetensors and the captions below the images; the perturbation is computed from the first two.
CAPTIONS = {
    "x": "x, clean",
    "x_adv": "x_adv",
    "perturbation": "x_adv − x",
    "g_x": "g(x)",
    "g_x_adv": "g(x_adv)",
}


@dataclass(frozen=True)
class Picture:
    """One image of an example: its key in ``CAPTIONS``, its path in the site and its size in pixels."""

    key: str
    path: str
    width: int
    height: int


@dataclass(frozen=True)
class Example:
    """One gallery example with its images or plots and the size of its perturbation."""

    entry: GalleryEntry
    pictures: list[Picture]
    waves: list[Wave]
    linf: float
    l2: float


@dataclass(frozen=True)
class Gallery:
    """All examples; ``factor`` is what an image's perturbation is multiplied by before it is shown around mid-grey."""

    examples: list[Example]
    factor: float
    problem: str = ""


def to_pixels(image: Array) -> npt.NDArray[np.uint8]:
    """An image ``(C, H, W)`` as bytes ``(H, W)`` or ``(H, W, 3)``.

    A transform may leave [0, 1] or produce NaN: values are clipped for display and NaN is shown as black. With two
    channels, or more than three, only the first is shown.
    """
    pixels = np.clip(np.nan_to_num(image, nan=0.0, posinf=1.0, neginf=0.0), 0, 1)
    rounded = np.rint(255 * pixels).astype(np.uint8)
    return rounded.transpose(1, 2, 0) if len(rounded) == 3 else rounded[0]


def amplification(delta: Array) -> float:
    """The largest factor, whole where it exceeds 1, that keeps ``0.5 + factor · delta`` inside [0, 1]."""
    largest = float(np.abs(delta).max(initial=0.0))
    if largest == 0 or not np.isfinite(largest):
        return 1.0
    factor = 0.5 / largest
    # float32 rounding of the images must not turn a whole factor into the one below it
    return float(np.floor(factor + 1e-3)) if factor >= 1 else factor


def write_gallery(
    source: Path, entries: list[GalleryEntry], root: Path, folder: str, low: float = 0.0, high: float = 1.0
) -> Gallery:
    """Write the images of ``entries`` below ``root/folder`` and say where they are, relative to ``root``.

    A gallery that cannot be read is no reason to withhold the page: the reason is returned as ``problem``.

    Args:
        source: ``gallery.safetensors``, compressed or not; arrays of rank four are shown as images, of rank three as
            waveforms.
        low, high: the box of the inputs' values, from black to white and from the bottom of a plot to its top.
    """
    if not entries:
        return Gallery([], 1.0)
    if not source.is_file():
        return Gallery([], 1.0, f"{source.name} is missing")
    try:
        arrays = load(unzipped(source))
    except (OSError, InputError, SafetensorError):
        return Gallery([], 1.0, f"{source.name} cannot be read")
    for key in ("x", "x_adv"):
        if key not in arrays:
            return Gallery([], 1.0, f"{source.name} lacks the array {key!r}")
    for key, array in arrays.items():
        if array.ndim not in (3, 4) or len(array) != len(entries):
            expected = f"{len(entries)} images (N, C, H, W) or waveforms (N, C, T)"
            return Gallery([], 1.0, f"{source.name} holds {key!r} of shape {array.shape}, expected {expected}")
    if arrays["x"].shape != arrays["x_adv"].shape:
        return Gallery([], 1.0, f"{source.name} holds 'x' and 'x_adv' of different shapes")
    arrays = {key: _values(array, low, high) for key, array in arrays.items()}
    delta = arrays["x_adv"] - arrays["x"]
    factor = amplification(delta / (high - low))
    examples = []
    for i, entry in enumerate(entries):
        pictures, waves = [], []
        for key in CAPTIONS:
            if key == "perturbation" and delta.ndim == 3:
                waves.append(difference(key, delta[i]))
            elif key == "perturbation":
                pictures.append(_write_picture(key, 0.5 + factor * delta[i] / (high - low), root, folder, i))
            elif key in arrays and arrays[key].ndim == 3:
                waves.append(trace(key, arrays[key][i], low, high))
            elif key in arrays:
                pictures.append(_write_picture(key, (arrays[key][i] - low) / (high - low), root, folder, i))
        flat = delta[i].astype(np.float64).ravel()
        linf, l2 = float(np.abs(flat).max(initial=0.0)), float(np.linalg.norm(flat))
        examples.append(Example(entry, pictures, waves, linf, l2))
    return Gallery(examples, factor)


def _values(array: npt.NDArray[Any], low: float, high: float) -> Array:
    """Bytes, which ``bench compact`` leaves of 8-bit images, are 255ths of the box."""
    if array.dtype != np.uint8:
        return array
    return np.float32(low) + np.float32(high - low) * (array.astype(np.float32) / np.float32(255))


def _write_picture(key: str, image: Array, root: Path, folder: str, number: int) -> Picture:
    pixels = to_pixels(image)
    path = f"{folder}/{number}-{key}.png"
    (root / folder).mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(root / path, optimize=True)
    return Picture(key, path, pixels.shape[1], pixels.shape[0])


#: Key of a picture of where a defense can be attacked -> its caption.
GRADIENT_CAPTIONS = {
    "heat": "mean absolute input gradient",
    "top": "top of the pixels",
    "designated": "designated pixels",
}


def write_gradients(record: InputGradients, root: Path, folder: str) -> list[Picture]:
    """Write the heat map (white: its largest value) and the sets of pixels below ``root/folder``."""
    heat = np.asarray(record.heat_map, dtype=np.float32)
    images = {"heat": heat / max(float(heat.max(initial=0.0)), 1e-30), "top": np.asarray(record.top, dtype=np.float32)}
    if record.designated is not None:
        images["designated"] = np.asarray(record.designated, dtype=np.float32)
    (root / folder).mkdir(parents=True, exist_ok=True)
    pictures = []
    for key, image in images.items():
        pixels = to_pixels(image[None])
        path = f"{folder}/gradients-{key}.png"
        Image.fromarray(pixels).save(root / path, optimize=True)
        pictures.append(Picture(key, path, pixels.shape[1], pixels.shape[0]))
    return pictures
