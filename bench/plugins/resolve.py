"""From what a user writes (a name, a file, a module) to a defense or an attack.

A reference is a registered name, ``path/to/file_or_folder.py:Name`` or ``module:attr``. Without ``:Name`` the
only candidate that the file or module defines is taken.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pydantic
import torch
from torch import nn

from bench.contracts.attack import AttackSpec
from bench.contracts.defense import BareModel, Defense, DefenseSpec
from bench.contracts.errors import InputError, did_you_mean
from bench.contracts.inputs import DataInfo
from bench.plugins.registry import ATTACKS, DEFENSES, Registry, import_failed
from bench.storing.digest import PACKAGES, code_digest, digest


@dataclass(frozen=True)
class Found:
    """What a reference points to, and the module in which it was looked up."""

    obj: object
    module: ModuleType


@dataclass(frozen=True)
class LoadedDefense:
    """A defense that is ready to be evaluated.

    Attributes:
        defense: on its device; a model that a plugin returned keeps the mode in which it was returned.
        checkpoint: the file that its weights were loaded from, None when it has none.
        sha256: of that file.
        training: the checkpoint's training record.
        code: hash of the code of its class and of the module it was found in
            (:func:`bench.storing.digest.code_digest`).
    """

    defense: Defense
    checkpoint: Path | None
    sha256: str | None
    training: dict[str, Any]
    code: str


# -- references ---------------------------------------------------------------------------------------------


def resolve(reference: str, registry: Registry = DEFENSES) -> object:
    """What a reference points to.

    Args:
        reference: a registered name, ``path/to/file_or_folder.py:Name`` or ``module:attr``.
        registry: where names are looked up, and what counts as a candidate without ``:Name``.

    Raises:
        InputError: for an unknown name, a missing file or attribute, or no single candidate.
        PluginError: when importing it fails; the message carries the plugin's own error.
    """
    return _find(reference, registry).obj


def _find(reference: str, registry: Registry) -> Found:
    place, _, member = reference.rpartition(":")
    if not place:
        place, member = member, ""
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
            raise InputError(f"module {name!r} does not exist (a file is written ./{name}.py)") from error
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
        return isinstance(obj, type) and issubclass(obj, Defense)

    def is_own(obj: object) -> bool:
        return f"{getattr(obj, '__module__', '')}.".startswith(f"{module.__name__}.")

    public = {name: obj for name, obj in vars(module).items() if not name.startswith("_")}
    found = {name: obj for name, obj in public.items() if fits(obj) and is_own(obj)}
    if len(found) != 1:
        listed = f"several: {', '.join(found)}" if found else "none"
        what = "function decorated with @attack" if registry is ATTACKS else "subclass of Defense"
        raise InputError(f"{place}: expected one {what}, found {listed}; write {place}:NAME")
    return next(iter(found.values()))


# -- defenses -----------------------------------------------------------------------------------------------


def build_defense(spec: DefenseSpec, info: DataInfo) -> Defense:
    """Build a defense, without loading weights.

    A subclass of :class:`Defense` is called as ``cls(info, **params)``. A function (or another class) is called
    with ``info`` when it takes a positional argument, and what it returns is wrapped in :class:`BareModel` unless
    it is a defense already; so is a model instance.

    Args:
        spec: reference and parameters; strings are converted to the annotated types.
        info: the data set's name, image shape and class count.

    Raises:
        InputError: for an unknown, missing or invalid parameter, or when no model comes out.
    """
    return _build(_find(spec.reference, DEFENSES).obj, spec, info)


def _build(obj: object, spec: DefenseSpec, info: DataInfo) -> Defense:
    name = spec.reference
    if isinstance(obj, nn.Module):
        if spec.params:
            raise InputError(f"{name}: is a model already and takes no parameters ({', '.join(spec.params)})")
        return _wrapped(obj, info)
    if not callable(obj):
        raise InputError(f"{name}: expected a Defense, a model or a function, got {type(obj).__name__}")
    positional = (isinstance(obj, type) and issubclass(obj, Defense)) or _takes_info(obj, spec.params)
    params = _check_params(obj, spec.params, name, skip=int(positional))
    made = obj(info, **params) if positional else obj(**params)
    if not isinstance(made, nn.Module):
        raise InputError(f"{name}: returned {type(made).__name__}, expected a torch.nn.Module")
    if isinstance(obj, type):
        made.eval()  # a module just constructed is in training mode; that says nothing about its author
    return _wrapped(made, info)


def _wrapped(model: nn.Module, info: DataInfo) -> Defense:
    if isinstance(model, Defense):
        return model
    wrapper = BareModel(model, info)
    wrapper.training = model.training  # the wrapper has no mode of its own
    return wrapper


def _positional(function: Callable[..., Any]) -> list[inspect.Parameter]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p for p in inspect.signature(function, eval_str=True).parameters.values() if p.kind in kinds]


def _takes_info(function: Callable[..., Any], params: dict[str, Any]) -> bool:
    """Whether the first positional argument is meant for the :class:`DataInfo`: annotated so, or left open."""
    first = next(iter(_positional(function)), None)
    if first is None:
        return False
    return first.annotation is DataInfo or (first.default is first.empty and first.name not in params)


def _check_params(function: Callable[..., Any], params: dict[str, Any], where: str, skip: int) -> dict[str, Any]:
    """``params`` converted to the types that the function's signature asks for."""
    signature = inspect.signature(function, eval_str=True).parameters.values()
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    known = {p.name: p for p in list(signature)[skip:] if p.kind not in variadic}
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature)
    for name in params:
        if name not in known and not open_ended:
            raise InputError(f"{where}: no parameter {name!r}{did_you_mean(name, known)}")
    given = {name: (_annotation(known[name]), ...) for name in params if name in known}
    config = pydantic.ConfigDict(arbitrary_types_allowed=True, protected_namespaces=())
    model = pydantic.create_model("Parameters", __config__=config, **given)  # type: ignore[call-overload]
    try:
        values = model(**params)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{where}: parameter {first['loc'][0]}: {first['msg']}, got {first['input']!r}") from None
    for parameter in known.values():
        if parameter.default is parameter.empty and parameter.name not in params:
            raise InputError(f"{where}: parameter {parameter.name!r} is required")
    return {name: getattr(values, name) if name in known else value for name, value in params.items()}


def _annotation(parameter: inspect.Parameter) -> Any:
    """The annotation, or the type of a plain default where there is none."""
    if parameter.annotation is not parameter.empty:
        return parameter.annotation
    return type(parameter.default) if isinstance(parameter.default, (bool, int, float, str)) else Any


def load_defense(spec: DefenseSpec, info: DataInfo, device: torch.device | str = "cpu") -> LoadedDefense:
    """Build a defense, load its weights when it is one that is trained, and move it to ``device``.

    Raises:
        InputError: as :func:`build_defense`; also for a missing checkpoint, or one whose SHA-256 differs.
    """
    from bench.storing.checkpoints import checkpoint_path, load_

    found = _find(spec.reference, DEFENSES)
    defense = _build(found.obj, spec, info)
    code = digest(code_digest(found.module), code_digest(defense))
    if not (defense.trainable and type(defense).fit is not Defense.fit):
        return LoadedDefense(defense.to(device), None, None, {}, code)
    path = checkpoint_path(defense, spec.name, spec.checkpoints)
    loaded = load_(defense, path)
    return LoadedDefense(defense.to(device), path, loaded.sha256, loaded.training, code)


# -- attacks ------------------------------------------------------------------------------------------------


def get_attack(reference: str) -> AttackSpec:
    """The attack that a reference points to (a registered name, a file or a module).

    Raises:
        InputError: as :func:`resolve`, or when the function is not decorated.
    """
    function = resolve(reference, ATTACKS)
    spec = getattr(function, "attack", None)
    if not isinstance(spec, AttackSpec):
        raise InputError(
            f"{reference}: is not registered; decorate the function with "
            '@attack("name", knowledge="gradient", norms=("linf",)) from bench.contracts.attack'
        )
    return spec
