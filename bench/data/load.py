"""Data sets by name.

``load_data`` understands names of published data sets, ``folder:PATH``, a folder of images laid out as
``{train,test}/<class>/*.png`` or ``.jpg`` (which is ``cifar10`` if these are its images), ``file:PATH``, arrays in a
``.npz``, ``.pt`` or ``.safetensors`` file, ``hf:NAME``, a data set of the Hugging Face hub
(:mod:`bench.data.huggingface`), and any function that returns a data set (:mod:`bench.data.plugin`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from bench.contracts.errors import InputError, did_you_mean
from bench.data import cifar10, content, digits, fashion_mnist, files, folder, huggingface, plugin
from bench.data.downloads import default_root
from bench.data.published import cifar100, mnist, svhn, tiny_imagenet
from bench.data.splits import Data
from bench.plugins.held import held, is_held
from bench.plugins.registry import DATA

#: Published data sets by name: read from files below a folder, which are downloaded to it if that is asked for.
#: A new one is a module of this folder and an entry here.
PUBLISHED: dict[str, Callable[[Path, bool], Data]] = {
    "digits": digits.load,
    "cifar10": cifar10.load,
    "cifar100": cifar100.load,
    "fashion-mnist": fashion_mnist.load,
    "mnist": mnist.load,
    "svhn": svhn.load,
    "tiny-imagenet": tiny_imagenet.load,
}

#: Data sets of a user's own by the kind before the colon; published names are reserved.
LOCAL: dict[str, Callable[[Path, Collection[str]], Data]] = {"folder": folder.load, "file": files.load}

#: The prefix of data sets of the Hugging Face hub.
HUB = "hf"

_loaded: dict[tuple[str, Path], Data] = {}


def load_data(reference: str, root: Path | None = None, download: bool = False) -> Data:
    """Load a data set, once per process.

    Args:
        reference: of :data:`PUBLISHED`, ``folder:PATH``, ``file:PATH``, ``hf:NAME`` or a function that returns a data
            set.
        root: where the published data sets lie or are downloaded to (default: that of :mod:`bench.data.downloads`).
        download: fetch what is missing; without it nothing touches the network.

    Raises:
        InputError: for an unknown reference, missing or damaged files, or a folder that breaks the layout.
    """
    if is_held(reference):
        data = held(reference)
        assert isinstance(data, Data)
        return data
    kind, _, argument = reference.partition(":")
    if kind in LOCAL and argument:
        where = Path(argument).expanduser().resolve()
    elif kind == HUB and argument:
        where = Path.cwd()
    elif reference in PUBLISHED:
        where = (root or default_root()).expanduser().resolve()
    elif plugin.names_one(reference):
        where = Path.cwd()
    else:
        known = [*PUBLISHED, *DATA.names(), "folder:PATH", "file:PATH", "hf:NAME", "FILE.py:FUNCTION"]
        path = Path(reference)
        there = "folder" if path.is_dir() else "file" if path.is_file() else ""
        hint = f" (did you mean '{there}:{reference}'?)" if there else did_you_mean(reference, known)
        raise InputError(f"data {reference!r} does not exist{hint}")
    key = (kind if kind in LOCAL else reference, where)
    if key not in _loaded:
        if kind in LOCAL:
            _loaded[key] = LOCAL[kind](where, PUBLISHED)
        elif kind == HUB:
            _loaded[key] = huggingface.load(argument, download, PUBLISHED)
        elif reference in PUBLISHED:
            _loaded[key] = PUBLISHED[reference](where, download)
        else:
            _loaded[key] = plugin.load(reference)
    return _loaded[key]


def kept_in(reference: str, root: Path | None = None) -> list[Path]:
    """The folders and files in which a data set is, or may be, with its labels: what a defense must not see.

    Arguments: see :func:`load_data`.
    """
    kind, _, argument = reference.partition(":")
    local = [Path(argument).expanduser()] if kind in LOCAL and argument else []
    return [path.resolve() for path in (default_root(), *([root.expanduser()] if root else []), *local)]


def is_published(reference: str, name: str) -> Path | None:
    """The folder of a reference whose content is that of the published data set ``name``, else None."""
    kind, _, argument = reference.partition(":")
    path = Path(argument).expanduser().resolve()
    if kind != "folder" or name != content.CIFAR10.name or not folder.is_one(path):
        return None
    return path if load_data(reference).info.name == name else None
