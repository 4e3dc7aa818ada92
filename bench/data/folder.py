"""Any folder of images laid out as ``{train,test}/<class>/*.png`` or ``.jpg``."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bench.contracts.errors import InputError
from bench.contracts.inputs import DataInfo, InputSpec
from bench.data.splits import Data, Split, balanced_order, validation_ids

#: Of decoding, order, ids and splits.
VERSION = 1
LAYOUT = "expected an image folder {train,test}/<class>/*.png or .jpg"
_SUFFIXES = (".png", ".jpg", ".jpeg")
_DECODE_CHUNK = 256
_GREY_MODES = ("1", "L", "LA")


def load(root: Path) -> Data:
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
    info = DataInfo(root.name, InputSpec(shape), len(class_names))
    return Data(info, class_names, splits[0], splits[1], splits[2], VERSION)


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
