"""Arrays in one file: ``.npz``, ``.pt`` or ``.safetensors`` with ``x`` and ``y``, and training examples if it has some.

What is read: ``x`` and ``y`` (or ``x_test`` and ``y_test``), which are evaluated; ``x_train`` and ``y_train``, of which
validation examples are held out; ``num_classes``, where the labels do not show it. A ``.pt`` file may also hold just
the pair ``(x, y)``. Images are uint8, or floats in [0, 1], channels first or last; grey ones may lack the channel.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.contracts.errors import InputError, did_you_mean
from bench.contracts.inputs import DataInfo, InputSpec
from bench.data.cache import cached
from bench.data.splits import Data, Part, numbered, with_validation

#: Of reading, order, ids and splits.
VERSION = 1
_NAMES = ("x", "y", "x_test", "y_test", "x_train", "y_train", "num_classes")
_GREY_OR_COLOUR = (1, 3)


def load(path: Path, reserved: Collection[str] = ()) -> Data:
    """The arrays of a file as a data set with the file's name, without its ending.

    Args:
        path: its ending says what it is.
        reserved: names of published data sets; a file of such a name is ``file-NAME``.

    Raises:
        InputError: for a file that cannot be read, lacks arrays, or has some of other shapes, types or values.
    """
    if path.suffix not in READERS:
        raise InputError(f"data file {path}: ends with none of {', '.join(READERS)}")

    def stamp() -> list[int]:
        try:
            about = path.stat()
        except OSError as error:
            raise InputError(f"data file {path}: cannot be read: {error.strerror}") from None
        return [about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino]

    before = stamp()
    name = f"file-{path.stem}" if path.stem in reserved else path.stem
    label = f"file-{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}"
    return cached(label, [VERSION, name, before], lambda: _read(path, name), lambda: stamp() == before)


def _read(path: Path, name: str) -> Data:
    try:
        found = READERS[path.suffix](path)
    except InputError:
        raise
    except Exception as error:  # whatever a file of another kind makes its reader raise
        raise InputError(f"data file {path}: cannot be read: {_reason(path, error)}") from None
    where = f"data file {path}"
    for key in found:
        if key not in _NAMES:
            raise InputError(f"{where}: has an array {key!r}{did_you_mean(key, _NAMES)}; known: {', '.join(_NAMES)}")
    if "x" in found and "x_test" in found:
        raise InputError(f"{where}: has both x and x_test; which are to be evaluated?")
    test = _part(where, "test", found, *(("x_test", "y_test") if "x_test" in found else ("x", "y")))
    train = _part(where, "train", found, "x_train", "y_train") if {"x_train", "y_train"} & set(found) else None
    if train is None:
        train = Part(test.images[:0], test.labels[:0], [])
    elif train.images.shape[1:] != test.images.shape[1:] or train.images.dtype != test.images.dtype:
        one, two = (f"{part.images.dtype} {part.images.shape[1:]}" for part in (train, test))
        raise InputError(f"{where}: training images are {one}, test images {two}")
    most = int(max(part.labels.max(initial=0) for part in (train, test)))
    classes = _classes(where, found, most)
    levels = 256 if test.images.dtype == np.uint8 else None
    info = DataInfo(name, InputSpec(test.images.shape[1:], levels=levels), classes)
    return with_validation(info, [str(label) for label in range(classes)], train, test, VERSION)


def _reason(path: Path, error: Exception) -> str:
    """Why, in a few words; what the libraries say of a file of another kind is how to load it unsafely."""
    if isinstance(error, (pickle.UnpicklingError, LookupError)) or "pickle" in str(error):
        return f"it is no {path.suffix} file of arrays, or it holds other objects than arrays"
    return (" ".join(str(error).split()) or type(error).__name__)[:200]


def _classes(where: str, found: Mapping[str, NDArray[Any]], most: int) -> int:
    given = found.get("num_classes")
    if given is None:
        return max(2, most + 1)
    if given.size != 1 or given.dtype.kind not in "iu" or int(given.reshape(())) < 2:
        raise InputError(f"{where}: num_classes must be one whole number, at least 2")
    if most >= int(given.reshape(())):
        raise InputError(f"{where}: has the label {most}, but num_classes is {int(given.reshape(()))}")
    return int(given.reshape(()))


def _part(where: str, part: str, found: Mapping[str, NDArray[Any]], x: str, y: str) -> Part:
    for key in (x, y):
        if key not in found:
            there = ", ".join(found) or "nothing"
            raise InputError(f"{where}: has no array {key!r}; it has {there}")
    images, labels = _images(f"{where}: {x}", found[x]), _labels(f"{where}: {y}", found[y])
    if len(images) != len(labels):
        raise InputError(f"{where}: {x} has {len(images)} examples, {y} has {len(labels)}")
    if not len(images):
        raise InputError(f"{where}: {x} has no examples")
    return Part(images, labels, numbered(part, len(labels)))


def _images(what: str, x: NDArray[Any]) -> NDArray[Any]:
    """uint8 or float32, ``(N, C, H, W)``. Floats that are all k / 255 become the bytes they stand for."""
    if x.ndim == 3:
        x = x[:, None]
    if x.ndim != 4:
        raise InputError(f"{what}: has the shape {x.shape}, expected (N, C, H, W), (N, H, W, C) or (N, H, W)")
    first, last = x.shape[1] in _GREY_OR_COLOUR, x.shape[3] in _GREY_OR_COLOUR
    if first == last:
        which = "first and the last could be" if first else "first nor the last is"
        raise InputError(f"{what}: has the shape {x.shape}; {'both the' if first else 'neither the'} {which} channels")
    if last:
        x = x.transpose(0, 3, 1, 2)
    if x.dtype == np.uint8:
        return np.ascontiguousarray(x)
    if x.dtype.kind != "f":
        raise InputError(f"{what}: is {x.dtype}, expected uint8, or floats in [0, 1]")
    x = np.ascontiguousarray(x, dtype=np.float32)
    if x.size and not (x.min() >= 0 and x.max() <= 1):  # NaN is neither
        raise InputError(f"{what}: spans [{x.min():.4g}, {x.max():.4g}], expected floats in [0, 1] (or uint8)")
    whole = np.rint(x * 255).astype(np.uint8)
    return whole if np.array_equal(whole.astype(np.float32) / np.float32(255), x) else x


def _labels(what: str, y: NDArray[Any]) -> NDArray[np.int64]:
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise InputError(f"{what}: is {y.dtype} {y.shape}, expected whole numbers (N,)")
    if y.size and int(y.min()) < 0:
        raise InputError(f"{what}: has the label {int(y.min())}, expected classes from 0 on")
    return y.astype(np.int64)


# -- the three kinds of files ---------------------------------------------------------------------------------


def _npz(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path, allow_pickle=False) as file:
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise InputError(f"data file {path}: is one array, expected an archive of x and y")
        return {key: file[key] for key in file.files}


def _pt(path: Path) -> dict[str, NDArray[Any]]:
    with warnings.catch_warnings():  # a pickle that is none of PyTorch's is refused in a line
        warnings.simplefilter("ignore")
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(loaded, tuple | list) and len(loaded) == 2:
        loaded = {"x": loaded[0], "y": loaded[1]}
    if not isinstance(loaded, dict) or not all(isinstance(key, str) for key in loaded):
        raise InputError(f"data file {path}: holds a {type(loaded).__name__}, expected tensors x and y by name")
    return {key: _array(path, key, value) for key, value in loaded.items()}


def _array(path: Path, key: str, value: object) -> NDArray[Any]:
    if isinstance(value, Tensor):
        # NumPy has no bfloat16.
        return (value.float() if value.is_floating_point() else value).detach().numpy()
    if isinstance(value, int):
        return np.asarray(value)
    raise InputError(f"data file {path}: {key} is a {type(value).__name__}, expected a tensor")


def _safetensors(path: Path) -> dict[str, NDArray[Any]]:
    return {key: _array(path, key, value) for key, value in safetensors.torch.load_file(path).items()}


#: By the ending of the file's name.
READERS: dict[str, Callable[[Path], dict[str, NDArray[Any]]]] = {
    ".npz": _npz,
    ".pt": _pt,
    ".safetensors": _safetensors,
}
