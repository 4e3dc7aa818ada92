"""From a reference and parameters to a defense or an attack."""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pydantic
import torch
from torch import Tensor, nn

from bench.contracts.attack import AttackSpec
from bench.contracts.defense import BareModel, Defense, DefenseSpec, count_parameters
from bench.contracts.detector import Detector, WithDetector
from bench.contracts.errors import InputError, did_you_mean, in_one_line
from bench.contracts.inputs import DataInfo
from bench.plugins.held import is_held
from bench.plugins.references import find, resolve
from bench.plugins.registry import ATTACKS, DEFENSES
from bench.storing.checkpoints import Loaded, TrainingSettings, find_checkpoint, load_
from bench.storing.digest import code_digest, digest, state_digest


@dataclass(frozen=True)
class LoadedDefense:
    """A defense that is ready to be evaluated.

    Attributes:
        defense: on its device; a model that a plugin returned keeps the mode in which it was returned.
        checkpoint: the file that its weights were loaded from, None when it has none.
        sha256: of that file.
        training: the checkpoint's training record.
        version: declared by its class, or of a plugin that declares none a hash of its own files.
        libraries: versions of the libraries that it says it depends on.
        digest: of its weights, size: how many parameters, where these are not in this process.
        borrowed: the file of the classifier behind a detector, where its weights are not in ``checkpoint``.
    """

    defense: Defense
    checkpoint: Path | None
    sha256: str | None
    training: dict[str, Any]
    version: int | str
    libraries: dict[str, str]
    digest: str = ""
    size: int = -1
    borrowed: Path | None = None

    @property
    def weights(self) -> str:
        """Digest of parameters and buffers."""
        return self.digest or state_digest(self.defense)

    @property
    def num_parameters(self) -> int:
        """Number of scalar parameters."""
        return count_parameters(self.defense) if self.size < 0 else self.size


# -- defenses -----------------------------------------------------------------------------------------------


def build_defense(spec: DefenseSpec, info: DataInfo) -> Defense:
    """Build a defense, without loading weights.

    A subclass of :class:`Defense` is called as ``cls(info, **params)``. A function (or another class) is called
    with ``info`` when it takes a positional argument, and what it returns is wrapped in :class:`BareModel` unless
    it is a defense already; so is a model instance. A subclass of :class:`Detector` is put in front of the defense
    that its parameter ``classifier`` names (default ``none``).

    Args:
        spec: reference and parameters; strings are converted to the annotated types.
        info: the data set's name, image shape and class count.

    Raises:
        InputError: for an unknown, missing or invalid parameter, or when no model comes out.
    """
    return _build(find(spec.reference, DEFENSES).obj, spec, info)


def _build(obj: object, spec: DefenseSpec, info: DataInfo) -> Defense:
    name = spec.reference
    if isinstance(obj, type) and issubclass(obj, Detector):
        return _with_detector(obj, spec, info)
    if isinstance(obj, nn.Module):
        if spec.params:
            raise InputError(f"{name}: is a model already and takes no parameters ({', '.join(spec.params)})")
        return _wrapped(obj, info)
    if not callable(obj):
        raise InputError(f"{name}: expected a Defense, a model or a function, got {type(obj).__name__}")
    positional = (isinstance(obj, type) and issubclass(obj, Defense)) or _takes_info(obj, spec.params)
    params = _check_params(obj, spec.params, name, skip=int(positional))
    if isinstance(obj, type) and issubclass(obj, Defense):
        _check_kind(obj, name, info)
    with in_one_line(f"{name} raised"):
        made = obj(info, **params) if positional else obj(**params)
    if not isinstance(made, nn.Module):
        raise InputError(f"{name}: returned {type(made).__name__}, expected a torch.nn.Module")
    if isinstance(obj, type):
        made.eval()  # a module just constructed is in training mode; that says nothing about its author
    return _wrapped(made, info)


def _check_kind(cls: type[Defense] | type[Detector], name: str, info: DataInfo) -> None:
    if info.input.kind not in cls.kinds:
        kinds = " or ".join(f"{kind}s" for kind in cls.kinds)
        raise InputError(f"{name}: takes {kinds}; the inputs of {info.name} are {info.input.kind}s")


def _with_detector(cls: type[Detector], spec: DefenseSpec, info: DataInfo) -> WithDetector:
    _check_kind(cls, spec.reference, info)
    # The classifier comes first: its initial weights are then those that it has without a detector.
    defense = build_defense(behind_detector(spec), info)
    own = {name: value for name, value in spec.params.items() if name != "classifier"}
    params = _check_params(cls, own, spec.reference, skip=1)
    with in_one_line(f"{spec.reference} raised"):
        detector = cls(info, **params)
    whole = WithDetector(detector.eval(), defense)
    whole.training = defense.training  # as for a bare model: its mode is its author's
    return whole


def behind_detector(spec: DefenseSpec) -> DefenseSpec:
    """The defense that a detector stands in front of."""
    return DefenseSpec(str(spec.params.get("classifier", "none")))


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


def load_defense(
    spec: DefenseSpec,
    info: DataInfo,
    device: torch.device | str = "cpu",
    training: TrainingSettings | None = None,
    weights: dict[str, Tensor] | None = None,
) -> LoadedDefense:
    """Build a defense, load its weights when it is one that is trained, and move it to ``device``.

    ``training``: what the weights were trained for (``Suite.training``); without it there must be only one checkpoint.
    ``weights``: these parameters and buffers, wherever they come from, instead of those of a checkpoint.

    Raises:
        InputError: as :func:`build_defense`; also for a missing checkpoint, or one whose SHA-256 differs.
    """
    found = find(spec.reference, DEFENSES)
    defense = _build(found.obj, spec, info)
    if is_held(spec.reference):  # with its weights, and for one run
        return LoadedDefense(defense.to(device), None, None, {}, "in memory", _libraries(defense))
    about = (_version(defense, found.module, spec), _libraries(defense))
    if weights is not None:
        defense.load_state_dict(weights)
    if weights is not None or not defense.has_recipe:
        return LoadedDefense(defense.to(device), None, None, {}, *about)
    borrowed, behind = borrow_(defense, spec, training)
    if not has_own_weights(defense):
        return LoadedDefense(defense.to(device), borrowed, behind.sha256, behind.training, *about)
    path = find_checkpoint(*trained_as(defense, spec), training)
    loaded = load_(defense, path, behind=behind.sha256)
    return LoadedDefense(defense.to(device), path, loaded.sha256, loaded.training, *about, borrowed=borrowed)


def borrow_(
    defense: Defense, spec: DefenseSpec, training: TrainingSettings | None
) -> tuple[Path | None, Loaded]:
    """Load the weights of the classifier behind a detector from a checkpoint of its own, where they are borrowed.

    It is looked for where the detector's is, and then where the classifier has its own by default.

    Returns:
        The checkpoint, and what was loaded; None and an empty SHA-256 where nothing is borrowed.

    Raises:
        InputError: as :func:`load_defense`.
    """
    if not (isinstance(defense, WithDetector) and defense.borrows):
        return None, Loaded("", {})
    behind = behind_detector(spec)
    try:
        given = replace(behind, checkpoints=spec.checkpoints)
        path = find_checkpoint(*trained_as(defense.defense, given), training)
    except InputError:
        path = find_checkpoint(*trained_as(defense.defense, behind), training)
    return path, load_(defense.defense, path)


def has_own_weights(defense: Defense) -> bool:
    """Whether a checkpoint of its own holds anything: not of a detector that is not trained and borrows the rest."""
    return not (isinstance(defense, WithDetector) and defense.borrows and not defense.detector.has_recipe)


def trained_as(defense: Defense, spec: DefenseSpec) -> tuple[Defense, DefenseSpec]:
    """The defense whose recipe makes the weights of this one, and how to build it: itself, or ``weights_of``.

    Of a detector that has no weights before a classifier that has a checkpoint of its own, that one.
    """
    if isinstance(defense, WithDetector) and not has_own_weights(defense):
        return trained_as(defense.defense, replace(behind_detector(spec), checkpoints=spec.checkpoints))
    if defense.weights_of is None:
        return defense, spec
    params = {name: value for name, value in spec.params.items() if name == "network"}
    other = DefenseSpec(defense.weights_of, params, spec.checkpoints)
    return build_defense(other, defense.data), other


def _version(defense: Defense, module: ModuleType, spec: DefenseSpec) -> int | str:
    """What the class of a defense declares, or a hash; of a detector before a defense, those of both."""
    if isinstance(defense, WithDetector):
        behind = behind_detector(spec)
        versions = (
            _version_of(type(defense.detector), module),
            _version(defense.defense, find(behind.reference, DEFENSES).module, behind),
        )
        return "+".join(map(str, versions))
    return _version_of(type(defense), module)


def _version_of(cls: type, module: ModuleType) -> int | str:
    """What a class itself declares; else a hash of the plugin's own files, with what it extends of this project.

    A version is never inherited: a subclass behaves as its base does only until it is changed.
    """
    declared = vars(cls).get("version")
    if declared is not None:
        return int(declared)
    if cls is BareModel:
        return digest(code_digest(module))
    extended = [(base.__qualname__, vars(base)["version"]) for base in cls.__mro__[1:] if vars(base).get("version")]
    return digest(code_digest(module), code_digest(cls), extended)


def _libraries(defense: Defense) -> dict[str, str]:
    found = {}
    for name in defense.depends:
        try:
            # Without what says how it was built, such as +cpu: that is told by the component `device`.
            found[name] = importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            raise InputError(f"defense {type(defense).__name__}: depends on {name!r}, which is not installed") from None
    return found


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
            '@attack("name", knowledge="gradient", norms=("linf",)) from bench'
        )
    return spec


def attack_version(spec: AttackSpec) -> int | str:
    """What an attack declares; else a hash of the plugin's own files."""
    return code_digest(spec.function) if spec.version is None else spec.version
