"""Any folder of images laid out as ``{train,test}/<class>/*.png`` or ``.jpg``; ``train`` may be missing."""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import os
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo, InputSpec
from bench.data import content
from bench.data.cache import cached
from bench.data.pictures import decode
from bench.data.splits import Data, Split, balanced_order, validation_ids

#: Of decoding, order, ids and splits.
VERSION = 2
LAYOUT = "expected an image folder {train,test}/<class>/*.png or .jpg"
_SUFFIXES = (".png", ".jpg", ".jpeg")
_DECODE_CHUNK = 256
#: A file that changed so shortly ago (in seconds) could change again and show the same time of its last change.
_SETTLED = 2.0
_log = logging.getLogger(__name__)


def load(root: Path, reserved: Collection[str] = ()) -> Data:
    """An image folder. Grey when every image is grey, colour otherwise; validation is carved from train.

    Without a folder ``train`` there are only test images, on which a model that is trained already can be evaluated.

    A folder that has the content of a known data set *is* that one (:mod:`bench.data.content`), with its name and
    version. Any other has the name of the folder.

    Args:
        root: the folder.
        reserved: names of published data sets. A folder of such a name and of other content is ``folder-NAME``, so
            that neither results nor checkpoints are taken for those of the published one.

    Raises:
        InputError: for a folder that breaks the layout, and for an image that cannot be read or has another size.
    """
    before = _list(root)

    def unchanged() -> bool:
        return _list(root).stamp == before.stamp and before.changed < time.time() - _SETTLED

    label = f"folder-{hashlib.sha256(os.fsencode(root)).hexdigest()[:16]}"
    name = f"folder-{root.name}" if root.name in reserved else root.name
    known = content.CIFAR10
    source = [VERSION, name, before.stamp, known.version, known.sha256]

    def decoded() -> Data:
        data = _read(root, before, name)
        return content.recognised(data) or data

    data = cached(label, source, decoded, unchanged)
    if data.info.name == name != root.name and multiprocessing.parent_process() is None:
        what = f"has not the content of the published {root.name}"
        _log.warning("note: folder %s: %s; its data set is called %s", root, what, name)
    return data


def is_one(root: Path) -> bool:
    """Whether a folder has the two parts of an image folder."""
    return all((root / part).is_dir() for part in ("train", "test"))


def read(root: Path) -> Data:
    """An image folder, decoded anew, under the folder's name."""
    return _read(root, _list(root), root.name)


@dataclass(frozen=True)
class _Listing:
    """What lies in an image folder, without having read a file.

    Attributes:
        classes: below ``train``, or ``test`` where there is no such folder; sorted.
        ids: part → ``part/class/file`` of each of its images, by class and name.
        stamp: hash of all names and of each file's size, time of last change, and number: another one whenever a file
            was replaced, added, removed, written to or touched.
        changed: when any file was last changed, in seconds since the epoch.
    """

    classes: list[str]
    ids: dict[str, list[str]]
    stamp: str
    changed: float


def _list(root: Path) -> _Listing:
    if not root.is_dir():
        raise InputError(f"folder {root}: {'is a file' if root.exists() else 'there is no such folder'}; {LAYOUT}")
    if not (root / "test").is_dir():
        raise InputError(f"folder {root}: has no folder 'test'; {LAYOUT}")
    parts = ("train", "test") if (root / "train").is_dir() else ("test",)
    classes = sorted(p.name for p in (root / parts[0]).iterdir() if p.is_dir())
    if len(classes) < 2:
        raise InputError(f"folder {root}: has {len(classes)} classes below {parts[0]!r}, needs 2; {LAYOUT}")
    for extra in sorted(p.name for p in (root / "test").iterdir() if p.is_dir() and p.name not in classes):
        raise InputError(f"folder {root / 'test' / extra}: class {extra!r} has no folder below 'train'")
    ids: dict[str, list[str]] = {}
    stamp, changed = hashlib.sha256(), 0.0
    for part in ("train", "test"):
        ids[part] = []
        if part not in parts:
            continue
        for name in classes:  # a class may be absent from the test part
            files = sorted(_files(root / part / name))
            if not files and part == "train":
                raise InputError(f"folder {root / part / name}: has no images; {LAYOUT}")
            ids[part] += [f"{part}/{name}/{file}" for file, *_ in files]
            stamp.update(repr((part, name, files)).encode())
            changed = max([changed, *(when / 1e9 for _, when, *_ in files)])
        if not ids[part]:
            raise InputError(f"folder {root / part}: has no images; {LAYOUT}")
    return _Listing(classes, ids, stamp.hexdigest(), changed)


def _files(folder: Path) -> Iterator[tuple[str, int, int, int, int]]:
    """Images of a folder, if it exists: name, and what changes with the content, the time of last change (ns) first."""
    if folder.is_dir():
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name.lower()
                if not name.endswith(_SUFFIXES) or name in _SUFFIXES:
                    continue
                try:
                    about = entry.stat()
                except OSError as error:
                    raise InputError(f"image {entry.path}: cannot be read: {error}") from None
                yield entry.name, about.st_ctime_ns, about.st_mtime_ns, about.st_size, about.st_ino


def _read(root: Path, listing: _Listing, name: str) -> Data:
    label_of = {name: label for label, name in enumerate(listing.classes)}
    train, test = listing.ids["train"], listing.ids["test"]
    held_out = validation_ids(train, [label_of[_class_of(i)] for i in train])
    chosen = [[i for i in train if i not in held_out], [i for i in train if i in held_out], test]
    height, width, _ = decode(root / next(i for ids in chosen for i in ids))[0].shape
    size = width, height
    splits, all_grey = [], True
    for ids in chosen:
        labels = [label_of[_class_of(i)] for i in ids]
        order = balanced_order(ids, labels)
        ordered = [ids[i] for i in order]
        images, grey = _decode(root, ordered, size)
        all_grey = all_grey and grey
        splits.append(Split(images, torch.tensor([labels[i] for i in order], dtype=torch.int64), ordered))
    if all_grey:
        splits = [Split(s.inputs[:, :1].contiguous(), s.y, s.ids) for s in splits]
    shape = (1 if all_grey else 3, size[1], size[0])
    info = DataInfo(name, InputSpec(shape, levels=256), len(listing.classes))
    return Data(info, listing.classes, splits[0], splits[1], splits[2], VERSION)


def _class_of(identifier: str) -> str:
    return identifier.split("/")[1]


def _decode(root: Path, ids: list[str], size: tuple[int, int]) -> tuple[Tensor, bool]:
    """Images as uint8 ``(N, 3, H, W)``, and whether all of them are grey."""
    width, height = size
    images = torch.empty(len(ids), 3, height, width, dtype=torch.uint8)

    def chunk(start: int) -> bool:
        grey, some = True, ids[start : start + _DECODE_CHUNK]
        pixels = np.empty((len(some), height, width, 3), np.uint8)
        for row, name in enumerate(some):
            path = root / name
            rgb, is_grey = decode(path)
            grey, found = grey and is_grey, (rgb.shape[1], rgb.shape[0])
            if found != size:
                raise InputError(f"image {path}: is {found[0]}x{found[1]}, the others are {width}x{height}")
            pixels[row] = rgb
        images[start : start + len(some)] = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        return grey

    with ThreadPoolExecutor() as pool:  # decoding releases the interpreter lock
        grey = all(list(pool.map(chunk, range(0, len(ids), _DECODE_CHUNK))))
    return images, grey
