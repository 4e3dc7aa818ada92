"""CIFAR-100 (Krizhevsky 2009), as its author publishes it, with its fine labels."""

from __future__ import annotations

import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo, InputSpec
from bench.data.cache import cached
from bench.data.downloads import whole
from bench.data.splits import Data, Part, with_validation

#: Of decoding, order, ids and splits.
VERSION = 1
URL = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
SHA256 = "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7"


def load(root: Path, download: bool) -> Data:
    """CIFAR-100 (Krizhevsky 2009): 32×32 colour, 50,000 training and 10,000 test images, 100 classes.

    Its ids are ``<part>/<class>/<name>.png``, with the names that the files give the images. The archive itself is
    needed: nobody has published hashes of what is in it.
    """
    return cached("cifar100", [VERSION, SHA256], lambda: _read(whole(URL, SHA256, root, download=download)))


def _read(path: Path) -> Data:
    files: dict[str, Any] = {}
    try:
        with tarfile.open(path) as tar:
            for name in ("meta", "train", "test"):
                member = tar.extractfile(f"cifar-100-python/{name}")
                assert member is not None
                # The file is a pickle; it is the published one, the hash of the archive has been checked.
                files[name] = pickle.loads(member.read(), encoding="bytes")
    except (tarfile.TarError, OSError, EOFError, KeyError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    names = [name.decode() for name in files["meta"][b"fine_label_names"]]

    def part(called: str) -> Part:
        held = files[called]
        labels = np.asarray(held[b"fine_labels"], np.int64)
        named = zip(labels.tolist(), held[b"filenames"], strict=True)
        ids = [f"{called}/{names[y]}/{name.decode()}" for y, name in named]
        return Part(held[b"data"].reshape(-1, 3, 32, 32), labels, ids)

    info = DataInfo("cifar100", InputSpec((3, 32, 32), levels=256), len(names))
    return with_validation(info, names, part("train"), part("test"), VERSION)
