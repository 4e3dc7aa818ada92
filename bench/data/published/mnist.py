"""MNIST (LeCun et al. 1998), as PyTorch's mirror has the four files of its authors."""

from __future__ import annotations

from pathlib import Path

from bench.data.cache import cached
from bench.data.downloads import Archive
from bench.data.published import idx
from bench.data.splits import Data

#: Of decoding, order, ids and splits.
VERSION = 1
_MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"
ARCHIVES = (
    Archive(
        _MIRROR + "train-images-idx3-ubyte.gz",
        "MNIST/raw",
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        {"train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"},
    ),
    Archive(
        _MIRROR + "train-labels-idx1-ubyte.gz",
        "MNIST/raw",
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        {"train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"},
    ),
    Archive(
        _MIRROR + "t10k-images-idx3-ubyte.gz",
        "MNIST/raw",
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        {"t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"},
    ),
    Archive(
        _MIRROR + "t10k-labels-idx1-ubyte.gz",
        "MNIST/raw",
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        {"t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"},
    ),
)


def load(root: Path, download: bool) -> Data:
    """MNIST (LeCun et al. 1998): 28×28 grey, 60,000 training and 10,000 test images."""
    return cached("mnist", [VERSION, [a.members for a in ARCHIVES]], lambda: _read(root, download))


def _read(root: Path, download: bool) -> Data:
    names = [str(i) for i in range(10)]
    return idx.read("mnist", names, VERSION, ARCHIVES, root, download=download)
