"""Tiny ImageNet, the archive of Stanford's course CS231n. Its validation images are the test split here."""

from __future__ import annotations

import io
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo, InputSpec
from bench.data.cache import cached
from bench.data.downloads import whole
from bench.data.splits import Data, Part, with_validation

#: Of decoding, order, ids and splits.
VERSION = 1
URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
SHA256 = "6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821"
_TOP = "tiny-imagenet-200"


def load(root: Path, download: bool) -> Data:
    """Tiny ImageNet: 64×64 colour, 100,000 training and 10,000 test images, 200 classes, named by their WordNet ids.

    Its ids are ``<part>/<class>/<name>.JPEG``, with the names that the archive gives the images; so a folder laid out
    by these has the same ids. The labels of the archive's own test images have never been published.
    """
    return cached("tiny-imagenet", [VERSION, SHA256], lambda: _read(whole(URL, SHA256, root, download=download)))


def _read(path: Path) -> Data:
    try:
        with zipfile.ZipFile(path) as archive:
            classes = sorted(archive.read(f"{_TOP}/wnids.txt").decode().split())
            train = [name for name in archive.namelist() if _is_training_image(name)]
            told = archive.read(f"{_TOP}/val/val_annotations.txt").decode().splitlines()
            test = {line.split("\t")[0]: line.split("\t")[1] for line in told if line}
            train_ids = {name: f"train/{name.split('/')[2]}/{Path(name).name}" for name in train}
            test_ids = {f"{_TOP}/val/images/{name}": f"test/{wnid}/{name}" for name, wnid in test.items()}
            parts = {called: _part(archive, ids, classes) for called, ids in (("train", train_ids), ("test", test_ids))}
    except (zipfile.BadZipFile, OSError, KeyError, IndexError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    info = DataInfo("tiny-imagenet", InputSpec((3, 64, 64), levels=256), len(classes))
    return with_validation(info, classes, parts["train"], parts["test"], VERSION)


def _is_training_image(name: str) -> bool:
    return name.startswith(f"{_TOP}/train/") and name.endswith(".JPEG")


def _part(archive: zipfile.ZipFile, ids: dict[str, str], classes: list[str]) -> Part:
    """The images of an archive by their names in it; ``ids``: name → id."""
    label_of = {name: label for label, name in enumerate(classes)}
    images = np.empty((len(ids), 3, 64, 64), np.uint8)

    def decode(row: int, name: str) -> None:
        with Image.open(io.BytesIO(archive.read(name))) as image:
            pixels: NDArray[np.uint8] = np.asarray(image.convert("RGB"))
        images[row] = pixels.transpose(2, 0, 1)

    with ThreadPoolExecutor() as pool:
        list(pool.map(decode, range(len(ids)), ids))
    labels = np.asarray([label_of[identifier.split("/")[1]] for identifier in ids.values()], np.int64)
    return Part(images, labels, list(ids.values()))
