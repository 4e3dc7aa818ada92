"""SVHN (Netzer et al. 2011), format 2: cropped digits. Its set ``extra`` is not used."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from bench.contracts.inputs import DataInfo, InputSpec
from bench.data.cache import cached
from bench.data.downloads import Archive, contents
from bench.data.splits import Data, Part, numbered, with_validation

#: Of decoding, order, ids and splits.
VERSION = 1
_PLACE = "http://ufldl.stanford.edu/housenumbers/"
_TRAIN = "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8"
_TEST = "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b"
ARCHIVES = (
    Archive(f"{_PLACE}train_32x32.mat", "", _TRAIN, {"train_32x32.mat": _TRAIN}),
    Archive(f"{_PLACE}test_32x32.mat", "", _TEST, {"test_32x32.mat": _TEST}),
)


def load(root: Path, download: bool) -> Data:
    """SVHN (Netzer et al. 2011): 32×32 colour, 73,257 training and 26,032 test images."""
    return cached("svhn", [VERSION, [a.members for a in ARCHIVES]], lambda: _read(root, download))


def _read(root: Path, download: bool) -> Data:
    from scipy.io import loadmat  # scikit-learn brings it

    def part(archive: Archive, called: str) -> Part:
        (content,) = contents(archive, root, download=download).values()
        held = loadmat(io.BytesIO(content))
        images = np.ascontiguousarray(held["X"].transpose(3, 2, 0, 1))
        labels = held["y"].reshape(-1).astype(np.int64) % 10  # the file calls the digit 0 class 10
        return Part(images, labels, numbered(called, len(labels)))

    train, test = (part(archive, called) for archive, called in zip(ARCHIVES, ("train", "test"), strict=True))
    info = DataInfo("svhn", InputSpec((3, 32, 32), levels=256), 10)
    return with_validation(info, [str(i) for i in range(10)], train, test, VERSION)
