"""CIFAR-10 (Krizhevsky 2009), as its author publishes it."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np

from bench.contracts.inputs import DataInfo, InputSpec
from bench.data.cache import cached
from bench.data.downloads import Archive, contents
from bench.data.splits import Data, Part, with_validation

#: Of decoding, order, ids and splits.
VERSION = 1
_BATCHES = "cifar-10-batches-py"
#: Hashes of the batches are those of the files inside the published archive.
ARCHIVE = Archive(
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    "",
    "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    {
        f"{_BATCHES}/data_batch_1": "54636561a3ce25bd3e19253c6b0d8538147b0ae398331ac4a2d86c6d987368cd",
        f"{_BATCHES}/data_batch_2": "766b2cef9fbc745cf056b3152224f7cf77163b330ea9a15f9392beb8b89bc5a8",
        f"{_BATCHES}/data_batch_3": "0f00d98ebfb30b3ec0ad19f9756dc2630b89003e10525f5e148445e82aa6a1f9",
        f"{_BATCHES}/data_batch_4": "3f7bb240661948b8f4d53e36ec720d8306f5668bd0071dcb4e6c947f78e9682b",
        f"{_BATCHES}/data_batch_5": "d91802434d8376bbaeeadf58a737e3a1b12ac839077e931237e0dcd43adcb154",
        f"{_BATCHES}/test_batch": "f53d8d457504f7cff4ea9e021afcf0e0ad8e24a91f3fc42091b8adef61157831",
    },
)


def load(root: Path, download: bool) -> Data:
    """CIFAR-10 (Krizhevsky 2009): 32×32 colour, 50,000 training and 10,000 test images."""
    return cached("cifar10", [VERSION, ARCHIVE.members], lambda: _read(root, download))


def _read(root: Path, download: bool) -> Data:
    # The published files are pickles; they are the known ones, their hashes have been checked.
    found = contents(ARCHIVE, root, download=download)
    files = {name: pickle.loads(content, encoding="latin1") for name, content in found.items()}

    def part(names: list[str]) -> Part:
        images = np.concatenate([files[n]["data"] for n in names]).reshape(-1, 3, 32, 32)
        return Part(images, np.concatenate([np.asarray(files[n]["labels"], np.int64) for n in names]))

    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    train = sorted(n for n in files if not n.endswith("test_batch"))
    test = [n for n in files if n.endswith("test_batch")]
    info = DataInfo("cifar10", InputSpec((3, 32, 32), levels=256), 10)
    return with_validation(info, names, part(train), part(test), VERSION)
