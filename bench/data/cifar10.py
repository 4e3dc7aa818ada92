"""CIFAR-10 (Krizhevsky 2009), as its author publishes it."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np

from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo, InputSpec
from bench.data import content, folder
from bench.data.cache import cached
from bench.data.downloads import Archive, contents, present
from bench.data.splits import Data, Part, with_validation

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
    """CIFAR-10 (Krizhevsky 2009): 32×32 colour, 50,000 training and 10,000 test images.

    It is read from the published archive, or from a folder of lossless images under the names that the archive gives
    them: ``root`` itself or ``root/cifar10``. The content is checked, so both are the same, bit for bit.

    Raises:
        InputError: when neither is there and ``download`` is not set, or what is there is not CIFAR-10.
    """
    known = content.CIFAR10
    return cached(known.name, [known.version, known.sha256], lambda: _read(root, download))


def _read(root: Path, download: bool) -> Data:
    files = present(ARCHIVE, root)
    where = next((f for f in (root / content.CIFAR10.name, root) if folder.is_one(f)), None)
    if files is None and where is not None:
        data, origin = folder.read(where), f"folder {where}"
    else:
        data = _from_batches(contents(ARCHIVE, root, download=download) if files is None else files)
        origin = ARCHIVE.name
    known = content.recognised(data)
    if known is None:
        raise InputError(f"{origin}: is not CIFAR-10: its classes, names or pixels differ from the published ones")
    return known


def _from_batches(found: dict[str, bytes]) -> Data:
    # The published files are pickles; they are the known ones, their hashes have been checked.
    files = {name: pickle.loads(batch, encoding="bytes") for name, batch in found.items()}
    classes = list(content.CIFAR10.class_names)

    def part(called: str, names: list[str]) -> Part:
        images = np.concatenate([files[n][b"data"] for n in names]).reshape(-1, 3, 32, 32)
        labels = np.concatenate([np.asarray(files[n][b"labels"], np.int64) for n in names])
        given = [name.decode() for n in names for name in files[n][b"filenames"]]
        ids = [f"{called}/{classes[y]}/{name}" for y, name in zip(labels.tolist(), given, strict=True)]
        return Part(images, labels, ids)

    train = part("train", sorted(n for n in files if not n.endswith("test_batch")))
    test = part("test", [n for n in files if n.endswith("test_batch")])
    info = DataInfo("batches", InputSpec((3, 32, 32), levels=256), len(classes))
    return with_validation(info, classes, train, test, content.CIFAR10.version)
