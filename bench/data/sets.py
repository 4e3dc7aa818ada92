"""Data sets: inputs with labels, ids, and three fixed splits.

``load_data`` understands ``digits`` (scikit-learn's, always there), ``cifar10``, ``fashion-mnist`` and
``folder:PATH``, a folder of images laid out as ``{train,test}/<class>/*.png`` or ``.jpg``; besides, any function that
returns a :class:`Data`: ``file.py:function``, ``package.module:function`` or a name registered as ``bench.data``.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from bench.contracts.errors import InputError, did_you_mean
from bench.contracts.inputs import DataInfo, InputSpec
from bench.data import downloads
from bench.plugins.registry import DATA, PluginError
from bench.plugins.resolve import resolve

#: One training image in this many belongs to the validation split.
VALIDATION_SHARE = 10
_SUFFIXES = (".png", ".jpg", ".jpeg")
_DECODE_CHUNK = 256
_GREY_MODES = ("1", "L", "LA")
LAYOUT = "expected an image folder {train,test}/<class>/*.png or .jpg"


@dataclass(frozen=True, eq=False)
class Split:
    """Examples in a fixed order in which every prefix is as balanced over the classes as can be.

    Attributes:
        x: float32 ``(N, …)``, of the shape and in the box of the data set's :class:`InputSpec`.
        y: int64 ``(N,)``.
        ids: one name per example, for example ``digits/0123`` or ``test/cat/0042.jpg``.
    """

    x: Tensor
    y: Tensor
    ids: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, n: int) -> Split:
        """The first ``n`` examples; all of them when there are fewer."""
        return self if n >= len(self) else Split(self.x[:n], self.y[:n], self.ids[:n])

    @cached_property
    def digest(self) -> str:
        """SHA-256 over images, labels and ids."""
        digest = hashlib.sha256(f"{self.x.dtype} {tuple(self.x.shape)}".encode())
        digest.update(self.x.contiguous().numpy().data)
        digest.update(self.y.contiguous().numpy().data)
        digest.update("\n".join(self.ids).encode())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Data:
    """A data set. Every split has the input shape and the classes of ``info``."""

    info: DataInfo
    class_names: list[str]
    train: Split
    validation: Split
    test: Split
    version: int = 1


def data_digest(split: Split) -> str:
    """SHA-256 over the images, labels and ids of a split; part of every result's key."""
    return split.digest


def example_digests(split: Split) -> list[str]:
    """The first 16 hexadecimal digits of SHA-256 over each example's input and label."""
    found = []
    for x, y in zip(split.x, split.y, strict=True):
        sha = hashlib.sha256(f"{x.dtype} {tuple(x.shape)} {int(y)}\n".encode())
        sha.update(x.contiguous().numpy().data)
        found.append(sha.hexdigest()[:16])
    return found


def default_root() -> Path:
    """Where downloaded data sets are kept unless a root is given."""
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "worst-case-bench"


_loaded: dict[tuple[str, Path], Data] = {}


def load_data(reference: str, root: Path | None = None, download: bool = False) -> Data:
    """Load a data set, once per process.

    Args:
        reference: ``digits``, ``cifar10``, ``fashion-mnist``, ``folder:PATH`` or a function that returns a data set.
        root: where the published data sets lie or are downloaded to (default: :func:`default_root`).
        download: fetch what is missing; without it nothing touches the network.

    Raises:
        InputError: for an unknown reference, missing or damaged files, or a folder that breaks the layout.
    """
    kind, _, argument = reference.partition(":")
    if kind == "folder" and argument:
        where = Path(argument).expanduser().resolve()
    elif reference in _PUBLISHED:
        where = (root or default_root()).expanduser().resolve()
    elif _is_plugin(reference):
        where = Path.cwd()
    else:
        known = [*_PUBLISHED, *DATA.names(), "folder:PATH", "FILE.py:FUNCTION"]
        raise InputError(f"data {reference!r} does not exist{did_you_mean(reference, known)}")
    key = (kind if kind == "folder" else reference, where)
    if key not in _loaded:
        if kind == "folder":
            _loaded[key] = _folder(where)
        elif reference in _PUBLISHED:
            _loaded[key] = _PUBLISHED[reference](where, download)
        else:
            _loaded[key] = _from_plugin(reference)
    return _loaded[key]


def _is_plugin(reference: str) -> bool:
    place, _, function = reference.rpartition(":")
    return reference in DATA.names() or bool(function and (place.endswith(".py") or "." in place))


def _from_plugin(reference: str) -> Data:
    """What the function behind a reference returns."""
    function = resolve(reference, DATA)
    if not callable(function):
        raise InputError(f"data {reference}: expected a function that returns Data, got {type(function).__name__}")
    try:
        data = function()
    except InputError:
        raise
    except Exception as error:  # whatever a plugin raises
        raise PluginError(f"data {reference}: raised {type(error).__name__}: {' '.join(str(error).split())}") from error
    if not isinstance(data, Data):
        raise InputError(f"data {reference}: returned {type(data).__name__}, expected bench.data.sets.Data")
    return data


# -- order and splits ---------------------------------------------------------------------------------------


def _hash(identifier: str) -> bytes:
    return hashlib.sha256(identifier.encode()).digest()


def balanced_order(ids: list[str], labels: Iterable[int]) -> list[int]:
    """Positions in an order that takes one example of every class in turn, shuffled by the hash of the ids.

    It depends on names alone, so examples added later leave the relative order of the others as it was.
    """
    members: dict[int, list[tuple[bytes, int]]] = {}
    for position, label in enumerate(labels):
        members.setdefault(label, []).append((_hash(ids[position]), position))
    rounds = [(turn, *entry) for entries in members.values() for turn, entry in enumerate(sorted(entries))]
    return [position for _, _, position in sorted(rounds)]


def validation_ids(ids: list[str], labels: Iterable[int]) -> set[str]:
    """The training ids held out for validation: about a tenth, by hash, and one at least of each class.

    A class with a single example keeps it for training.
    """
    held_out = set()
    members: dict[int, list[tuple[bytes, str]]] = {}
    for identifier, label in zip(ids, labels, strict=True):
        members.setdefault(label, []).append((_hash("validation/" + identifier), identifier))
    for entries in members.values():
        chosen = [name for h, name in entries if int.from_bytes(h[:8], "big") % VALIDATION_SHARE == 0]
        if not chosen and len(entries) > 1:
            chosen = [min(entries)[1]]
        held_out.update(chosen[: len(entries) - 1])
    return held_out


@dataclass(frozen=True)
class _Part:
    """A published part: uint8 ``(N, C, H, W)``, int64 ``(N,)``."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


def _split(part: _Part, ids: list[str], positions: list[int]) -> Split:
    """Some of the examples of a part, in balanced order, as float images."""
    names = [ids[p] for p in positions]
    order = [positions[i] for i in balanced_order(names, part.labels[positions].tolist())]
    x = torch.from_numpy(part.images[order]).to(torch.float32).div_(255)
    return Split(x, torch.from_numpy(part.labels[order]), [ids[p] for p in order])


def _with_validation(info: DataInfo, class_names: list[str], train: _Part, test: _Part) -> Data:
    """A data set published as a training and a test part."""
    ids = [f"train/{i:05d}" for i in range(len(train.labels))]
    held_out = validation_ids(ids, train.labels.tolist())
    test_ids = [f"test/{i:05d}" for i in range(len(test.labels))]
    return Data(
        info,
        class_names,
        _split(train, ids, [i for i, name in enumerate(ids) if name not in held_out]),
        _split(train, ids, [i for i, name in enumerate(ids) if name in held_out]),
        _split(test, test_ids, list(range(len(test_ids)))),
    )


# -- published data sets ------------------------------------------------------------------------------------


def _digits(root: Path, download: bool) -> Data:
    """scikit-learn's 1797 handwritten digits, 8×8 grey: 450 test, 340 validation, 1007 training examples."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = torch.from_numpy(bunch.images).to(torch.float32)[:, None] / 16
    y = torch.from_numpy(bunch.target).to(torch.int64)
    ids = [f"digits/{i:04d}" for i in range(len(y))]
    order = balanced_order(ids, y.tolist())

    def part(rows: list[int]) -> Split:
        return Split(x[rows], y[rows], [ids[i] for i in rows])

    info = DataInfo("digits", InputSpec((1, 8, 8)), 10)
    names = [str(i) for i in range(10)]
    return Data(info, names, part(order[790:]), part(order[450:790]), part(order[:450]))


def _cifar10(root: Path, download: bool) -> Data:
    """CIFAR-10 (Krizhevsky 2009): 32×32 colour, 50,000 training and 10,000 test images."""
    (archive,) = downloads.CIFAR10
    # The published files are pickles; they are the known ones, their hashes have been checked.
    found = downloads.contents(archive, root, download=download)
    files = {name: pickle.loads(content, encoding="latin1") for name, content in found.items()}

    def part(names: list[str]) -> _Part:
        images = np.concatenate([files[n]["data"] for n in names]).reshape(-1, 3, 32, 32)
        return _Part(images, np.concatenate([np.asarray(files[n]["labels"], np.int64) for n in names]))

    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    train = sorted(n for n in files if not n.endswith("test_batch"))
    test = [n for n in files if n.endswith("test_batch")]
    return _with_validation(DataInfo("cifar10", InputSpec((3, 32, 32)), 10), names, part(train), part(test))


def _fashion_mnist(root: Path, download: bool) -> Data:
    """Fashion-MNIST (Xiao et al. 2017): 28×28 grey, 60,000 training and 10,000 test images."""
    files: dict[str, bytes] = {}
    for archive in downloads.FASHION_MNIST:
        files |= downloads.contents(archive, root, download=download)

    def part(name: str) -> _Part:
        images = np.frombuffer(files[f"{name}-images-idx3-ubyte"], np.uint8, offset=16).reshape(-1, 1, 28, 28)
        labels = np.frombuffer(files[f"{name}-labels-idx1-ubyte"], np.uint8, offset=8).astype(np.int64)
        return _Part(images, labels)

    names = ["T-shirt/top", "trouser", "pullover", "dress", "coat"]
    names += ["sandal", "shirt", "sneaker", "bag", "ankle boot"]
    return _with_validation(DataInfo("fashion-mnist", InputSpec((1, 28, 28)), 10), names, part("train"), part("t10k"))


_PUBLISHED: dict[str, Callable[[Path, bool], Data]] = {
    "digits": _digits,
    "cifar10": _cifar10,
    "fashion-mnist": _fashion_mnist,
}


# -- image folders ------------------------------------------------------------------------------------------


def _folder(root: Path) -> Data:
    """An image folder. Grey when every image is grey, colour otherwise; validation is carved from train."""
    for part in ("train", "test"):
        if not (root / part).is_dir():
            raise InputError(f"folder {root}: has no folder {part!r}; {LAYOUT}")
    class_names = sorted(p.name for p in (root / "train").iterdir() if p.is_dir())
    if len(class_names) < 2:
        raise InputError(f"folder {root}: has {len(class_names)} classes below 'train', needs 2; {LAYOUT}")
    label_of = {name: label for label, name in enumerate(class_names)}
    for extra in sorted(p.name for p in (root / "test").iterdir() if p.is_dir() and p.name not in label_of):
        raise InputError(f"folder {root / 'test' / extra}: class {extra!r} has no folder below 'train'")
    found = {part: _image_ids(root, part, class_names) for part in ("train", "test")}
    held_out = validation_ids(found["train"], [label_of[_class_of(i)] for i in found["train"]])
    chosen = [
        [i for i in found["train"] if i not in held_out],
        [i for i in found["train"] if i in held_out],
        found["test"],
    ]
    with Image.open(root / chosen[0][0]) as first:
        size = first.size
    splits, all_grey = [], True
    for ids in chosen:
        labels = [label_of[_class_of(i)] for i in ids]
        order = balanced_order(ids, labels)
        ordered = [ids[i] for i in order]
        x, grey = _decode(root, ordered, size)
        all_grey = all_grey and grey
        splits.append(Split(x, torch.tensor([labels[i] for i in order], dtype=torch.int64), ordered))
    if all_grey:
        splits = [Split(s.x[:, :1].contiguous(), s.y, s.ids) for s in splits]
    shape = (1 if all_grey else 3, size[1], size[0])
    train, validation, test = splits
    return Data(DataInfo(root.name, InputSpec(shape), len(class_names)), class_names, train, validation, test)


def _class_of(identifier: str) -> str:
    return identifier.split("/")[1]


def _image_ids(root: Path, part: str, class_names: list[str]) -> list[str]:
    """``part/class/file`` of every image below a part; a class may be absent from the test part."""
    ids = []
    for name in class_names:
        folder = root / part / name
        inside = folder.iterdir() if folder.is_dir() else ()
        files = sorted(p.name for p in inside if p.suffix.lower() in _SUFFIXES)
        if not files and part == "train":
            raise InputError(f"folder {folder}: has no images; {LAYOUT}")
        ids += [f"{part}/{name}/{file}" for file in files]
    if not ids:
        raise InputError(f"folder {root / part}: has no images; {LAYOUT}")
    return ids


def _decode(root: Path, ids: list[str], size: tuple[int, int]) -> tuple[Tensor, bool]:
    """Images as float32 ``(N, 3, H, W)`` in [0, 1], and whether all of them are grey."""
    width, height = size
    x = torch.empty(len(ids), 3, height, width)

    def decode(start: int) -> bool:
        grey, some = True, ids[start : start + _DECODE_CHUNK]
        pixels = np.empty((len(some), height, width, 3), np.uint8)
        for row, name in enumerate(some):
            path = root / name
            try:
                with Image.open(path) as image:
                    found = image.size
                    grey = grey and image.mode in _GREY_MODES
                    rgb = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
            except OSError as error:
                raise InputError(f"image {path}: cannot be read: {error}") from None
            if found != size:
                raise InputError(f"image {path}: is {found[0]}x{found[1]}, the others are {width}x{height}")
            pixels[row] = rgb
        x[start : start + len(some)] = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        return grey

    with ThreadPoolExecutor() as pool:  # decoding releases the interpreter lock
        grey = all(list(pool.map(decode, range(0, len(ids), _DECODE_CHUNK))))
    return x.div_(255), grey
