"""Images in the four IDX files of MNIST, which Fashion-MNIST has taken over."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.contracts.inputs import DataInfo, InputSpec
from bench.data.downloads import Archive, contents
from bench.data.splits import Data, Part, numbered, with_validation


def read(
    name: str, classes: list[str], version: int, archives: Sequence[Archive], root: Path, *, download: bool
) -> Data:
    """A data set of 28×28 grey images called ``name``, from the files in ``archives`` below ``root``."""
    files: dict[str, bytes] = {}
    for archive in archives:
        files |= contents(archive, root, download=download)

    def part(file: str, called: str) -> Part:
        images = np.frombuffer(files[f"{file}-images-idx3-ubyte"], np.uint8, offset=16).reshape(-1, 1, 28, 28)
        labels = np.frombuffer(files[f"{file}-labels-idx1-ubyte"], np.uint8, offset=8).astype(np.int64)
        return Part(images, labels, numbered(called, len(labels)))

    info = DataInfo(name, InputSpec((1, 28, 28), levels=256), len(classes))
    return with_validation(info, classes, part("train", "train"), part("t10k", "test"), version)
