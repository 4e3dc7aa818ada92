"""Which files a model server may read: Python, the libraries, the plugin's folder, weights; and which it must not."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.contracts.defense import DefenseSpec
from bench.plugins.held import is_held
from bench.plugins.hubs import hub_model
from bench.plugins.registry import DEFENSES
from bench.storing.digest import PACKAGES

#: Of the system, read-only: programs and libraries, and how the dynamic linker finds them.
_SYSTEM = (
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/opt/cuda", "/nix/store", "/etc/ld.so.cache",
    "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives", "/etc/localtime", "/etc/nsswitch.conf", "/etc/passwd",
    "/etc/os-release", "/sys/devices/system",
)  # fmt: skip
#: Libraries that take as long to import as PyTorch.
_SLOW = ("torchvision", "timm")
#: Where Debian keeps data sets.
_DATA = ("/usr/share/datasets", "/usr/share/dataset-fashion-mnist")


@dataclass(frozen=True)
class Places:
    """Folders and files that a server may read, without those that are hidden from it. All are absolute and resolved.

    Of a hidden place inside a readable one, and the other way round, the longer path decides.
    """

    readable: tuple[str, ...]
    hidden: tuple[str, ...]
    #: Other names of readable places: links, and what they lead to.
    links: tuple[tuple[str, str], ...] = ()

    def rules(self) -> Iterator[tuple[str, bool]]:
        """Paths that together are what may be read, and whether all below may be; else the folder's names alone.

        For a mechanism that knows no exceptions: a folder with something hidden in it becomes its entries.
        """
        for path in self.readable:
            if not self.hides(path):
                yield from self._split(path)

    def hides(self, path: str) -> bool:
        """Whether the nearest named place at or above ``path`` is a hidden one."""
        above = [place for place in (*self.hidden, *self.readable) if _within(path, place)]
        longest = max(map(len, above), default=0)
        return any(len(place) == longest for place in self.hidden if _within(path, place))

    def _split(self, path: str) -> Iterator[tuple[str, bool]]:
        if not any(_within(place, path) for place in self.hidden):
            yield path, True
            return
        if not os.path.isdir(path):
            return
        yield path, False
        try:
            entries = sorted(os.listdir(path))
        except OSError:
            return
        for name in entries:
            # What a link leads to is somewhere else: it can be read there, or it cannot.
            inner = os.path.join(path, name)
            if not os.path.islink(inner) and inner not in self.hidden:
                yield from self._split(inner)


def places(spec: DefenseSpec, hidden: Iterable[Path | str]) -> Places:
    """What the server of a defense may read: see the module.

    Args:
        hidden: the results, the data set, and whatever else it must not see.
    """
    readable = {*_SYSTEM, *_python(), *_of_plugins(spec)}
    if spec.checkpoints is not None:
        readable.add(str(spec.checkpoints))
    concealed = {*map(str, hidden), *_DATA, *_shipped_data(), *_of_this_project()}
    links = {path: os.path.realpath(path) for path in readable if os.path.isabs(path)}
    return Places(
        _resolved(readable),
        _resolved(concealed),
        tuple(sorted((path, real) for path, real in links.items() if path != real and os.path.exists(real))),
    )


def references(spec: DefenseSpec) -> Iterator[str]:
    """Every reference to code in a specification: the defense, and one that a detector stands in front of."""
    yield spec.reference
    behind = spec.params.get("classifier")
    if isinstance(behind, str):
        yield behind


def is_foreign(spec: DefenseSpec) -> bool:
    """Whether it is, or has in it, code of a third party: a file, a module, or a plugin of another distribution.

    What is held in memory has been imported already. A published model (``timm:resnet18``) is built by code of
    this project and of a library.
    """
    built_in = set(DEFENSES.built_in())
    return any(name not in built_in and not is_held(name) and hub_model(name) is None for name in references(spec))


def libraries(spec: DefenseSpec) -> tuple[str, ...]:
    """Libraries that a defense is going to import, and that take long: named in its parameters, or in its file."""
    words = [*references(spec), *map(str, spec.params.values())]
    for path in [reference.rpartition(":")[0] for reference in references(spec)]:
        if path.endswith(".py"):
            with contextlib.suppress(OSError, ValueError):
                words.append(Path(path).read_text(encoding="utf-8"))
    return tuple(library for library in _SLOW if any(library in word for word in words))


def _python() -> set[str]:
    """The interpreter, its libraries and what is installed, and of this project the code alone."""
    found = {sys.prefix, sys.base_prefix, sys.exec_prefix, os.path.dirname(os.path.realpath(sys.executable))}
    ours = {str(_root())}
    for entry in sys.path:
        if entry and os.path.exists(entry) and {"site-packages", "dist-packages"} & set(Path(entry).parts):
            found.add(entry)
        else:  # a clone or a plugin's folder: of what is installed from it, what says which names it registers
            found |= {str(path) for kind in ("egg-info", "dist-info") for path in Path(entry).glob(f"*.{kind}")}
    found |= {path for name in PACKAGES for path in _package(name)}
    found |= {path for path in os.environ.get("LD_LIBRARY_PATH", "").split(":") if os.path.isabs(path)}
    return found - ours


def _root() -> Path:
    """The folder in which the packages of this project lie."""
    return Path(__file__).resolve().parents[2]


def _of_this_project() -> set[str]:
    """What a clone of this project has beside its code: published results with their labels, and the tests."""
    return {str(_root() / name) for name in ("results", "runs", "tests", ".git") if (_root() / name).exists()}


def _shipped_data() -> set[str]:
    """Data sets inside installed packages."""
    return {os.path.join(path, "datasets", "data") for path in _package("sklearn")}


def _package(name: str) -> set[str]:
    """The folders of a package, or the file of a module, without importing it."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return set()
    if spec is None:
        return set()
    folders = set(spec.submodule_search_locations or ())
    return folders or ({spec.origin} if spec.origin else set())


def _of_plugins(spec: DefenseSpec) -> set[str]:
    """The files of the plugins that a specification names."""
    found: set[str] = set()
    built_in = set(DEFENSES.built_in())
    for name in references(spec):
        if name in built_in:
            continue
        if name in DEFENSES.names():
            name = DEFENSES.entry(name).target
        place = name.rpartition(":")[0] or name
        if place.endswith(".py") or "/" in place or Path(place).is_dir():
            found |= _around(Path(place))
        else:
            found |= _beside(place.partition(".")[0])
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    hubs = (os.environ.get("TORCH_HOME") or cache / "torch", os.environ.get("HF_HOME") or cache / "huggingface")
    return found | {str(hub) for hub in hubs if Path(hub).exists()}


def _around(path: Path) -> set[str]:
    """The folder of a plugin's file, which is on its import path; of a package the whole of it."""
    folder = path.resolve() if path.is_dir() else path.resolve().parent
    while (folder / "__init__.py").is_file() and (folder.parent / "__init__.py").is_file():
        folder = folder.parent
    return {str(folder)}


def _beside(module: str) -> set[str]:
    """What an importable module needs: its package; of a module that is a file, the folder, for those beside it."""
    here = str(Path.cwd())
    sys.path.append(here)  # as for its import
    try:
        found = _package(module)
    finally:
        sys.path.remove(here)
    return {str(Path(path).parent) if path.endswith(".py") else path for path in found}


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _resolved(paths: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({os.path.realpath(os.path.expanduser(path)) for path in paths}))
