"""Decoded data sets on disk, where all processes map one file: one copy in memory, and no decoding the second time.

A cache file is a safetensors file, ``<label>-<source>-<SHA-256 of the file>.safetensors``. ``<source>`` hashes whatever
decides the content; a file of another source is never read. The file is opened only if it has the SHA-256 that its
name says, so a damaged one is made again, and what was computed when it was written (the digests of the splits) still
belongs to its content.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from bench.contracts.inputs import DataInfo, InputSpec
from bench.data.downloads import default_root
from bench.data.splits import Data, Split

#: Of the layout of cache files.
_FORMAT = 1
_SPLITS = ("train", "validation", "test")
_CHUNK = 1 << 20
_log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Where decoded data sets are kept."""
    return default_root() / "decoded"


def cached(label: str, source: object, read: Callable[[], Data], unchanged: Callable[[], bool] = lambda: True) -> Data:
    """A data set from its cache file, which is written if there is none.

    Args:
        label: begins the file's name. Files of the same label and another source are removed, they are out of date.
        source: JSON values that decide the content: which files, and the version of how they are read.
        read: makes the data set from its files.
        unchanged: asked after ``read``: whether ``source`` still describes what was read. Else nothing is kept.

    Returns:
        The data set, its inputs mapped from the file. Where the file cannot be written, the one that ``read`` made.
    """
    prefix = f"{label}-{hashlib.sha256(json.dumps([_FORMAT, source]).encode()).hexdigest()[:16]}-"
    for path in sorted(cache_folder().glob(f"{prefix}*.safetensors")):
        data = _open(path)
        if data is not None:
            return data
        with contextlib.suppress(OSError):
            path.unlink()
    data = read()
    if not unchanged():
        return data
    try:
        path = _write(data, prefix)
    except (OSError, safetensors.SafetensorError) as error:
        if multiprocessing.parent_process() is None:  # once a run, not once a worker
            reason = error.strerror if isinstance(error, OSError) else error
            _log.warning("note: %s: %s; each process holds its own copy of the data", cache_folder(), reason)
        return data
    for old in cache_folder().glob(f"{label}-*.safetensors"):
        if not old.name.startswith(prefix):
            with contextlib.suppress(OSError):  # processes that have mapped it keep what they have
                old.unlink()
    return _open(path) or data


def _write(data: Data, prefix: str) -> Path:
    """Write a cache file, whole or not at all."""
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    splits = {name: getattr(data, name) for name in _SPLITS}
    about = {
        "name": data.info.name,
        "low": data.info.input.low,
        "high": data.info.input.high,
        "kind": data.info.input.kind,
        "class_names": data.class_names,
        "version": data.version,
        "ids": {name: split.ids for name, split in splits.items()},
        "digests": {name: split.digest for name, split in splits.items()},
    }
    tensors = {f"{name}.inputs": split.inputs.contiguous() for name, split in splits.items()}
    tensors |= {f"{name}.y": split.y.contiguous() for name, split in splits.items()}
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{prefix}", suffix=".part")
    os.close(handle)
    try:
        # Not flushed to disk: a file that a power failure has cut off has another SHA-256.
        safetensors.torch.save_file(tensors, temporary, {"about": json.dumps(about)})
        path = folder / f"{prefix}{_sha256(Path(temporary))}.safetensors"
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return path


def _open(path: Path) -> Data | None:
    """The data set in a cache file, mapped; None when the file is damaged or gone."""
    try:
        if _sha256(path) != path.stem.rpartition("-")[2]:
            return None
        with safetensors.safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["about"])
            train, validation, test = (
                Split(
                    file.get_tensor(f"{name}.inputs"),
                    file.get_tensor(f"{name}.y"),
                    about["ids"][name],
                    # Computed from the content when the file was written; its SHA-256 says that this is still so.
                    about["digests"][name],
                )
                for name in _SPLITS
            )
    except (OSError, safetensors.SafetensorError):
        return None
    shape = tuple(train.inputs.shape[1:])
    # Held as bytes: the 256 grey levels of image files. (Data sets with other levels are not kept here.)
    levels = 256 if train.inputs.dtype == torch.uint8 else None
    spec = InputSpec(shape, about["low"], about["high"], about["kind"], levels)
    info = DataInfo(about["name"], spec, len(about["class_names"]))
    return Data(info, about["class_names"], train, validation, test, about["version"])


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
