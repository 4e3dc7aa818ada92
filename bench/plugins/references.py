"""From what a user writes (a name, a file, a module) to the object that is meant.

A reference is a registered name, ``path/to/file_or_folder.py:Name``, ``module:attr`` or, of a defense, a published
model such as ``timm:resnet18`` (:mod:`bench.plugins.hubs`). Without ``:Name`` the only candidate that the file or
module defines is taken.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from bench.contracts.attack import AttackSpec
from bench.contracts.defense import Defense
from bench.contracts.detector import Detector
from bench.contracts.errors import InputError, did_you_mean
from bench.plugins.held import held, is_held
from bench.plugins.hubs import hub_model
from bench.plugins.registry import ATTACKS, DEFENSES, Registry, import_failed
from bench.storing.digest import PACKAGES

#: How files of weights end.
_WEIGHTS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".onnx", ".pkl")


@dataclass(frozen=True)
class Found:
    """What a reference points to, and the module in which it was looked up."""

    obj: object
    module: ModuleType


def resolve(reference: str, registry: Registry = DEFENSES) -> object:
    """What a reference points to.

    Args:
        reference: a registered name, ``path/to/file_or_folder.py:Name`` or ``module:attr``.
        registry: where names are looked up, and what counts as a candidate without ``:Name``.

    Raises:
        InputError: for an unknown name, a missing file or attribute, or no single candidate.
        PluginError: when importing it fails; the message carries the plugin's own error.
    """
    return find(reference, registry).obj


def find(reference: str, registry: Registry) -> Found:
    """As :func:`resolve`, with the module."""
    if is_held(reference):
        return Found(held(reference), sys.modules[__name__])
    if registry is DEFENSES and (published := hub_model(reference)) is not None:
        return Found(published, sys.modules[published.__module__])
    if "://" in reference:
        raise InputError(f"{reference}: is an address, not a file; download it and name the file")
    place, _, member = reference.rpartition(":")
    if not place:
        place, member = member, ""
    if not place:
        raise InputError(f"{reference!r}: expected a name (bench list), file.py:Name or module:attr")
    if Path(place).suffix in _WEIGHTS:
        raise InputError(f"{place}: weights alone are no model; name the code that loads them, file.py:Name")
    if not member and place in registry.names():
        obj = registry.load(place)
        return Found(obj, sys.modules[registry.entry(place).target.partition(":")[0]])
    if place.endswith(".py") or "/" in place or Path(place).is_dir():
        module = _import_path(Path(place))
    elif member or "." in place:
        module = _import_module(place)
    else:
        registry.load(place)  # raises: no such name
        raise AssertionError("unreachable")
    if member:
        return Found(_member(module, member, place), module)
    return Found(_only_candidate(module, place, registry), module)


def _import_module(name: str) -> ModuleType:
    """Import a module by name; the current folder counts, as it does for ``python -m``."""
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            other = f"{name}: is no Python file" if Path(name).is_file() else None
            raise InputError(other or f"module {name!r} does not exist (a file is written ./{name}.py)") from error
        raise import_failed(f"module {name!r}", error) from error
    except (Exception, SystemExit) as error:  # whatever a plugin raises while it is imported
        raise import_failed(f"module {name!r}", error) from error


def _import_path(path: Path) -> ModuleType:
    """Import a file, or a folder with an ``__init__.py``, under a name that no other module has."""
    file = path / "__init__.py" if path.is_dir() else path
    if not file.is_file():
        if path.is_dir():
            raise InputError(f"{path}: the folder has no __init__.py; name a file in it")
        beside = [other.name for other in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise InputError(f"{path}: no such file{did_you_mean(path.name, beside)}")
    file = file.resolve()
    _let_siblings_be_imported(file.parent)
    try:
        return _import_uniquely(file)
    except (Exception, SystemExit) as error:  # whatever a plugin raises while it is imported
        raise import_failed(str(path), error) from error


def _import_uniquely(file: Path) -> ModuleType:
    """The module of a file; within a package its parents are imported first, so that relative imports work."""
    is_package = file.name == "__init__.py"
    place = file.parent if is_package else file
    if (place.parent / "__init__.py").is_file():
        parent = _import_uniquely(place.parent / "__init__.py")
        name = f"{parent.__name__}.{place.stem}"
    else:
        name = f"bench_plugin_{place.stem}_{hashlib.sha256(str(place).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    folders = [str(place)] if is_package else None
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=folders)
    if spec is None or spec.loader is None:
        raise InputError(f"{file.name}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _let_siblings_be_imported(folder: Path) -> None:
    """Put a plugin's folder on the path, and forget other plugins' modules that share a name with one in it."""
    for package in PACKAGES:
        importlib.import_module(package)  # before a folder of the same name beside the plugin could be taken for it
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if "." in name or file is None or name.startswith("bench_plugin_"):
            continue
        here = folder / f"{name}.py"
        if here.is_file() and str(Path(file).parent) in _plugin_folders - {str(folder)}:
            del sys.modules[name]
    if str(folder) in sys.path:
        sys.path.remove(str(folder))
    sys.path.insert(0, str(folder))
    _plugin_folders.add(str(folder))


_plugin_folders: set[str] = set()


def _member(module: ModuleType, member: str, place: str) -> object:
    if not hasattr(module, member):
        names = [name for name in vars(module) if not name.startswith("_")]
        raise InputError(f"{place}: defines no {member!r}{did_you_mean(member, names)}")
    return getattr(module, member)


def _only_candidate(module: ModuleType, place: str, registry: Registry) -> object:
    """The one defense (or attack) that a module defines itself."""

    def fits(obj: object) -> bool:
        if registry is ATTACKS:
            return isinstance(getattr(obj, "attack", None), AttackSpec)
        return isinstance(obj, type) and issubclass(obj, (Defense, Detector))

    def is_own(obj: object) -> bool:
        return f"{getattr(obj, '__module__', '')}.".startswith(f"{module.__name__}.")

    public = {name: obj for name, obj in vars(module).items() if not name.startswith("_")}
    found = {name: obj for name, obj in public.items() if fits(obj) and is_own(obj)}
    if len(found) != 1:
        listed = f"several: {', '.join(found)}" if found else "none"
        what = "function decorated with @attack" if registry is ATTACKS else "subclass of Defense or Detector"
        raise InputError(f"{place}: expected one {what}, found {listed}; write {place}:NAME")
    return next(iter(found.values()))
