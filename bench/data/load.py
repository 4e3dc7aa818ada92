"""Data sets by name.

``load_data`` understands ``digits`` (scikit-learn's, always there), ``cifar10``, ``fashion-mnist``, ``folder:PATH``, a
folder of images laid out as ``{train,test}/<class>/*.png`` or ``.jpg`` (which is ``cifar10`` if these are its images),
and any function that returns a data set (:mod:`bench.data.plugin`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bench.contracts.errors import InputError, did_you_mean
from bench.data import cifar10, digits, fashion_mnist, folder, plugin
from bench.data.downloads import default_root
from bench.data.splits import Data
from bench.plugins.registry import DATA

#: Published data sets by name: read from files below a folder, which are downloaded to it if that is asked for.
#: A new one is a module of this folder and an entry here.
PUBLISHED: dict[str, Callable[[Path, bool], Data]] = {
    "digits": digits.load,
    "cifar10": cifar10.load,
    "fashion-mnist": fashion_mnist.load,
}

_loaded: dict[tuple[str, Path], Data] = {}


def load_data(reference: str, root: Path | None = None, download: bool = False) -> Data:
    """Load a data set, once per process.

    Args:
        reference: ``digits``, ``cifar10``, ``fashion-mnist``, ``folder:PATH`` or a function that returns a data set.
        root: where the published data sets lie or are downloaded to (default: that of :mod:`bench.data.downloads`).
        download: fetch what is missing; without it nothing touches the network.

    Raises:
        InputError: for an unknown reference, missing or damaged files, or a folder that breaks the layout.
    """
    kind, _, argument = reference.partition(":")
    if kind == "folder" and argument:
        where = Path(argument).expanduser().resolve()
    elif reference in PUBLISHED:
        where = (root or default_root()).expanduser().resolve()
    elif plugin.names_one(reference):
        where = Path.cwd()
    else:
        known = [*PUBLISHED, *DATA.names(), "folder:PATH", "FILE.py:FUNCTION"]
        raise InputError(f"data {reference!r} does not exist{did_you_mean(reference, known)}")
    key = (kind if kind == "folder" else reference, where)
    if key not in _loaded:
        if kind == "folder":
            _loaded[key] = folder.load(where, PUBLISHED)
        elif reference in PUBLISHED:
            _loaded[key] = PUBLISHED[reference](where, download)
        else:
            _loaded[key] = plugin.load(reference)
    return _loaded[key]
