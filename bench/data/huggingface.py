"""Data sets of the Hugging Face hub, or in its formats on disk: ``hf:NAME[@REVISION][:CONFIG][,image=…][,label=…]…``.

``hf:ylecun/mnist``, ``hf:uoft-cs/cifar100,label=fine_label``, ``hf:./folder`` (what ``save_to_disk`` wrote, or parquet
files). The column of images and that of labels are found where there is one of each, else named; ``train`` and ``test``
name other splits than those. A split ``validation`` that is not the test split is the validation split.

The library ``datasets`` is an extra. No code of a repository is run, and nothing is downloaded unless asked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.contracts.errors import InputError, did_you_mean
from bench.contracts.inputs import DataInfo, InputSpec
from bench.data.cache import cached
from bench.data.pictures import decode
from bench.data.splits import Data, Part, numbered, with_validation
from bench.plugins.hubs.front import need

#: Of decoding, order, ids and splits.
VERSION = 1
_OPTIONS = ("image", "label", "train", "test")
#: Columns that hold the labels where the data set does not say so by their type; splits that are evaluated.
_LABELS, _TESTS = ("label", "labels", "y", "target", "class"), ("test", "validation", "valid", "val")
#: What marks labels that are kept secret.
_HIDDEN = -1


@dataclass(frozen=True)
class Asked:
    """A reference, taken apart."""

    name: str
    revision: str | None
    config: str | None
    options: Mapping[str, str]

    @staticmethod
    def of(argument: str) -> Asked:
        """From what stands behind ``hf:``. Raises :class:`InputError` where that says nothing known."""
        place, *pairs = argument.split(",")
        options = {}
        for pair in pairs:
            key, _, value = pair.partition("=")
            if key not in _OPTIONS:
                raise InputError(f"data hf:{argument}: no option {key!r}{did_you_mean(key, _OPTIONS)}")
            if not value or key in options:
                raise InputError(f"data hf:{argument}: {key} needs one value, as in {key}=NAME")
            options[key] = value
        repo, _, config = place.partition(":")
        name, _, revision = repo.partition("@")
        if not name:
            raise InputError(f"data hf:{argument}: names no data set, as in hf:OWNER/NAME or hf:./folder")
        return Asked(name, revision or None, config or None, options)

    @property
    def title(self) -> str:
        """The name of its results: of the repository or folder, with what makes other examples or labels of it."""
        chosen = [self.config, self.options.get("label"), self.options.get("test"), self.revision]
        return "-".join([Path(self.name).expanduser().resolve().name, *(part for part in chosen if part)])


def load(argument: str, download: bool, reserved: Collection[str] = ()) -> Data:
    """A data set with a column of images and one of labels.

    Args:
        argument: what stands behind ``hf:``.
        download: fetch what is not in the library's cache; without it nothing touches the network.
        reserved: names of published data sets; one of such a name is ``hf-NAME``.

    Raises:
        InputError: for a data set that is not there, lacks a column or a split, or whose images differ in size.
    """
    asked, what = Asked.of(argument), f"data hf:{argument}"
    splits = _splits(what, asked, download)
    chosen = _chosen(what, asked, splits)
    name = f"hf-{asked.title}" if asked.title in reserved else asked.title
    label = "hf-" + "".join(c if c.isalnum() else "-" for c in argument)[-60:]
    source = [VERSION, name, argument, {part: splits[split]._fingerprint for part, split in chosen.items()}]
    return cached(label, source, lambda: _read(what, asked, name, {part: splits[s] for part, s in chosen.items()}))


# -- finding it ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _offline(datasets: Any, hub: Any, offline: bool) -> Iterator[None]:
    """Tell both libraries, which read their environment variables when they are imported, to keep off the network."""
    before = datasets.config.HF_HUB_OFFLINE, hub.HF_HUB_OFFLINE
    if offline:
        datasets.config.HF_HUB_OFFLINE = hub.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, hub.HF_HUB_OFFLINE = before


def _splits(what: str, asked: Asked, download: bool) -> Mapping[str, Any]:
    """Split → ``datasets.Dataset``."""
    datasets, hub = need(what, "datasets", "hf"), need(what, "huggingface_hub.constants", "hf")
    folder = Path(asked.name).expanduser()
    local = asked.name.startswith((".", "/", "~")) or folder.is_dir()
    if local and not folder.is_dir():
        raise InputError(f"{what}: {folder} is no folder")
    saved = local and any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))
    try:
        with _offline(datasets, hub, not download):
            if saved:
                found = datasets.load_from_disk(str(folder))
            else:
                place = str(folder.resolve()) if local else asked.name
                found = datasets.load_dataset(place, asked.config, revision=asked.revision)
    except Exception as error:  # whatever the library raises
        reason = (" ".join(str(error).split()) or type(error).__name__)[:200]
        hint = "" if download or local else " (--download fetches what is not in the cache)"
        raise InputError(f"{what}: cannot be loaded{hint}: {type(error).__name__}: {reason}") from error
    if isinstance(found, datasets.Dataset):
        return {str(found.split or "test"): found}
    if not isinstance(found, Mapping):
        raise InputError(f"{what}: is a {type(found).__name__}, expected splits of a data set")
    return found


def _chosen(what: str, asked: Asked, splits: Mapping[str, Any]) -> dict[str, str]:
    """``train``, ``validation``, ``test`` → the split that it is; those that are not there are left out."""
    for key in ("train", "test"):
        named = asked.options.get(key)
        if named is not None and named not in splits:
            raise InputError(f"{what}: has no split {named!r}{did_you_mean(named, splits)}")
    test = asked.options.get("test") or next((name for name in _TESTS if name in splits), None)
    if test is None:
        raise InputError(f"{what}: which split is to be evaluated? It has {', '.join(splits)}; name one: ,test=SPLIT")
    train = asked.options.get("train") or ("train" if "train" in splits and test != "train" else None)
    if train == test:
        raise InputError(f"{what}: {test!r} cannot both be trained on and evaluated")
    validation = "validation" if "validation" in splits and "validation" not in (train, test) else None
    chosen = {"train": train, "validation": validation, "test": test}
    return {part: split for part, split in chosen.items() if split is not None}


# -- reading it ---------------------------------------------------------------------------------------------------


def _column(what: str, kind: str, named: str | None, typed: list[str], usual: list[str], there: list[str]) -> str:
    """The column that is named, else the only one of the type, else the only one of a usual name."""
    if named is not None:
        if named not in there:
            raise InputError(f"{what}: has no column {named!r}{did_you_mean(named, there)}")
        return named
    found = typed or usual
    if len(found) != 1:
        those = f"the {kind}s may be those of {', '.join(found)}" if found else f"no column is known to hold {kind}s"
        raise InputError(f"{what}: {those}; name one of {', '.join(there)}: ,{kind}=COLUMN")
    return found[0]


def _read(what: str, asked: Asked, name: str, splits: Mapping[str, Any]) -> Data:
    datasets = need(what, "datasets", "hf")
    features = splits["test"].features
    there = list(features)
    pictured = [key for key, kind in features.items() if isinstance(kind, datasets.Image)]
    classed = [key for key, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    image = _column(what, "image", asked.options.get("image"), pictured, [], there)
    label = _column(what, "label", asked.options.get("label"), classed, [k for k in _LABELS if k in there], there)
    if image not in pictured:
        raise InputError(f"{what}: column {image!r} holds no images but {features[image]}")
    for split in splits.values():
        if not {image, label} <= set(split.features):
            raise InputError(f"{what}: {split.split or 'a split'} lacks the column {image!r} or {label!r}")
    given = {part: list(split[label]) for part, split in splits.items()}
    names = _names(what, label, features[label], given)
    number = {value: k for k, value in enumerate(names)}
    parts, grey = {}, True
    for part, split in splits.items():
        labels = [k if isinstance(k, int) else number[str(k)] for k in given[part]]
        images, without_colour = _decoded(what, part, split.cast_column(image, datasets.Image(decode=False))[image])
        parts[part] = Part(images, np.array(labels, np.int64), numbered(part, len(labels)))
        grey = grey and without_colour
    if len({part.images.shape[1:] for part in parts.values()}) > 1:
        sizes = ", ".join(f"{key} {part.images.shape[3]}x{part.images.shape[2]}" for key, part in parts.items())
        raise InputError(f"{what}: its splits have images of other sizes: {sizes}")
    if grey:
        parts = {key: Part(part.images[:, :1], part.labels, part.ids) for key, part in parts.items()}
    test = parts["test"]
    info = DataInfo(name, InputSpec(test.images.shape[1:], levels=256), len(names))
    train = parts.get("train", Part(test.images[:0], test.labels[:0], []))
    return with_validation(info, names, train, test, VERSION, parts.get("validation"))


def _names(what: str, column: str, kind: Any, given: Mapping[str, list[Any]]) -> list[str]:
    """Names of the classes, of which every label is one."""
    values = {value for labels in given.values() for value in labels}
    if hidden := [part for part, labels in given.items() if _HIDDEN in labels]:
        raise InputError(
            f"{what}: the labels of {hidden[0]} are not published (they are {_HIDDEN}); name another split: ,test=SPLIT"
        )
    names = getattr(kind, "names", None)
    if names is None and all(isinstance(value, str) for value in values):
        names = sorted(values)
    elif names is None and all(isinstance(value, int) and value >= 0 for value in values):
        names = [str(k) for k in range(max(values, default=0) + 1)]
    if names is None or len(names) < 2 or any(isinstance(k, int) and not 0 <= k < len(names) for k in values):
        raise InputError(f"{what}: column {column!r} holds no classes from 0 on, nor names of at least 2, but {kind}")
    return list(names)


def _decoded(what: str, part: str, rows: Any) -> tuple[NDArray[np.uint8], bool]:
    """Images as uint8 ``(N, 3, H, W)``, and whether all of them are grey."""
    images: NDArray[np.uint8] | None = None
    all_grey = True
    for number, row in enumerate(rows):
        where = f"{what}: {part} {number}"
        if row is None or (row["bytes"] is None and row["path"] is None):
            raise InputError(f"{where}: has no image")
        rgb, grey = decode(Path(row["path"] or where), row["bytes"])
        if images is None:
            images = np.empty((len(rows), 3, *rgb.shape[:2]), np.uint8)
        if rgb.shape[:2] != images.shape[2:]:
            sizes = f"{rgb.shape[1]}x{rgb.shape[0]}, the others are {images.shape[3]}x{images.shape[2]}"
            raise InputError(f"{where}: is {sizes}")
        images[number], all_grey = rgb.transpose(2, 0, 1), all_grey and grey
    if images is None:
        raise InputError(f"{what}: {part} has no images")
    return images, all_grey
