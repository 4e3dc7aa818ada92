"""Weights on disk: a safetensors file beside a JSON record that holds its SHA-256 and how it was trained.

A file is named after what its weights were trained for, so that another threat model, seed or data set overwrites
nothing: ``checkpoints/<variant>/<data>[-<norm>-<eps>]-<hash>.safetensors``, with a hash over the fields
:data:`IDENTITY` of the training record. A recipe that does not use the threat model has none in the name.

Of a detector that borrows its classifier (``WithDetector.borrows``) a file holds the detector's tensors alone, and in
its metadata the SHA-256 of the classifier's checkpoint for which they were fitted: before other weights it is refused.

Nothing is pickled. A file that is missing, damaged or made for another network is refused with one line.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from bench.contracts.defense import Defense, DefenseSpec, count_parameters
from bench.contracts.detector import WithDetector
from bench.contracts.errors import InputError
from bench.contracts.threat import Lp
from bench.storing.names import readable, slug
from bench.storing.store import unpack_tensors, write_atomically

#: The fields of a training record that decide which weights come out; the others say how the training went.
IDENTITY = ("defense", "recipe_version", "data", "data_version", "threat", "seed")


@dataclass(frozen=True)
class Loaded:
    """What was loaded: the SHA-256 of the file and its training record."""

    sha256: str
    training: dict[str, Any]


@dataclass(frozen=True)
class TrainingSettings:
    """What weights are trained for; with the defense it decides which checkpoint is meant.

    Attributes:
        data, data_version: name and version of the data set.
        threat: the threat model that the recipe defends against; None only for a recipe that uses none.
        seed: of the training.
        any_seed: whether weights of another seed will do where there are none of this one, and one file alone fits.
        options: those of ``bench train`` that ask for these weights; for messages.
    """

    data: str
    data_version: int
    threat: Lp | None
    seed: int
    any_seed: bool = field(default=False, compare=False)
    options: str = field(default="--suite SUITE", compare=False)

    def __str__(self) -> str:
        return ", ".join(filter(None, [self.data, str(self.threat or ""), f"seed {self.seed}"]))

    def identity(self, defense: Defense, name: str) -> dict[str, Any]:
        """The fields :data:`IDENTITY` for a variant of a defense."""
        threat = self.threat if defense.trains_in_ball else None
        return {
            "defense": name,
            "recipe_version": defense.recipe_version,
            "data": self.data,
            "data_version": self.data_version,
            "threat": None if threat is None else {"norm": threat.norm, "eps": threat.eps},
            "seed": self.seed,
        }

    @classmethod
    def of_record(cls, training: dict[str, Any]) -> TrainingSettings | None:
        """The settings in a training record; None for the empty record of a defense that is not trained."""
        if "seed" not in training:
            return None
        threat = training.get("threat")
        ball = None if threat is None else Lp(threat["norm"], threat["eps"])
        return cls(training["data"], training.get("data_version", 1), ball, training["seed"])


# -- where ----------------------------------------------------------------------------------------------------


def checkpoints_folder(author: type) -> Path:
    """``checkpoints`` beside the file that defines a class, or in the outermost folder of the package it is in."""
    folder = Path(inspect.getfile(author)).resolve().parent
    while (folder / "__init__.py").is_file() and (folder.parent / "__init__.py").is_file():
        folder = folder.parent
    return folder / "checkpoints"


def checkpoint_path(defense: Defense, name: str, settings: TrainingSettings, folder: Path | None = None) -> Path:
    """Where the weights of a defense lie: ``<folder>/<variant>/<data>[-<norm>-<eps>]-<hash>.safetensors``.

    Args:
        defense: built, with or without its weights.
        name: of the variant, ``DefenseSpec.name``.
        settings: what it was trained for.
        folder: default: :func:`checkpoints_folder` of its author's class.
    """
    parent = (folder or checkpoints_folder(defense.author)) / slug(name)
    return parent / f"{file_stem(settings.identity(defense, name))}.safetensors"


def file_stem(identity: dict[str, Any]) -> str:
    """The name that the fields :data:`IDENTITY` give a file; other fields of a training record do not count."""
    counted = {key: identity[key] for key in IDENTITY}
    threat = counted["threat"]
    ball = [] if threat is None else [str(Lp(threat["norm"], threat["eps"]))]
    digest = hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()
    return "-".join(readable(part) for part in [counted["data"], *ball, digest[:8]])


def record_path(path: Path) -> Path:
    """The JSON record beside a checkpoint."""
    return path.with_suffix(".json")


def records(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The checkpoints in a folder, in name order, each with its training record; {} where that cannot be read."""
    for path in sorted(folder.glob("*.safetensors")):
        try:
            yield path, _read_record(path)["training"]
        except InputError:
            yield path, {}


def find_checkpoint(defense: Defense, spec: DefenseSpec, settings: TrainingSettings | None) -> Path:
    """The checkpoint that was trained for ``settings``; without these, the only one on the data of ``defense``.

    Raises:
        InputError: when there is none, with the command that makes it; without settings also when there are several.
    """
    found = _trained(defense, spec)
    folder = spec.checkpoints or checkpoints_folder(defense.author)
    listed = "; ".join(str(other) for other in found.values())
    if settings is None:
        if len(found) == 1:
            return next(iter(found))
        if found:
            raise InputError(f"{spec.name}: has several checkpoints ({listed}); say which settings are meant")
        path = folder / slug(spec.name) / f"{readable(defense.data.name)}-*.safetensors"
        suite = f"--suite SUITE` (a suite on {defense.data.name})"
        raise InputError(f"checkpoint {path}: does not exist; {_made_by(spec)} {suite}")
    path = checkpoint_path(defense, spec.name, settings, folder)
    if path.is_file():
        return path
    if settings.any_seed:
        reseeded = {at: replace(other, seed=settings.seed) for at, other in found.items()}
        fitting = [at for at, other in reseeded.items() if checkpoint_path(defense, spec.name, other, folder) == path]
        if len(fitting) == 1:
            return fitting[0]
    hint = f"; there are weights for {listed}, which `trained_for` in the suite can ask for" if found else ""
    raise InputError(f"checkpoint {path}: does not exist; {_made_by(spec)} {settings.options}`{hint}")


def _trained(defense: Defense, spec: DefenseSpec) -> dict[Path, TrainingSettings]:
    """The checkpoints of a variant that its recipe, as it is now, made from the data of ``defense``."""
    found = {}
    for path, training in records((spec.checkpoints or checkpoints_folder(defense.author)) / slug(spec.name)):
        settings = TrainingSettings.of_record(training)
        if settings is None or settings.data != defense.data.name:
            continue
        if path.stem == file_stem(settings.identity(defense, spec.name)):
            found[path] = settings
    return found


def _made_by(spec: DefenseSpec) -> str:
    """``make it with `bench train --defense …``, without the options that name the suite and the closing quote."""
    words = ["--defense", spec.reference]
    for key, value in spec.params.items():
        words += ["--set", f"{key}={value}"]
    if spec.checkpoints is not None:
        words += ["--checkpoints", str(spec.checkpoints)]
    return f"make it with `bench train {shlex.join(words)}"


# -- what -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def round_to_half_(defense: Defense) -> None:
    """Round every weight to float16, in place; they stay float32, and :func:`save` can then store them as float16.

    Raises:
        InputError: where one is beyond float16's range (65,504).
    """
    for name, tensor in _own(defense).items():
        if tensor.is_floating_point():
            rounded = tensor.half()
            if not torch.isfinite(rounded).all():
                raise InputError(f"half precision: {name} has a value beyond 65504")
            tensor.copy_(rounded)


def save(defense: Defense, path: Path, training: dict[str, Any], *, half: bool = False, behind: str = "") -> Loaded:
    """Write the weights and, after them, the record ``{sha256, size, num_parameters, training}``.

    ``half``: as float16, of weights that :func:`round_to_half_` has rounded. ``behind``: SHA-256 of the classifier's
    checkpoint, of a detector that borrows it. Each file is written whole or not at all; a record that belongs to older
    weights fails the next :func:`load_` by its SHA-256.
    """
    tensors = _tensors(defense)
    if half:
        tensors = {name: t.half() if t.is_floating_point() else t for name, t in tensors.items()}
    data = safetensors.torch.save(tensors, {"classifier": behind} if behind else None)
    sha256 = hashlib.sha256(data).hexdigest()
    record = {
        "sha256": sha256,
        "size": len(data),
        "num_parameters": count_parameters(defense),
        "training": training,
    }
    write_atomically(path, data)
    write_atomically(record_path(path), (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())
    return Loaded(sha256, training)


def load_(defense: Defense, path: Path, *, behind: str = "") -> Loaded:
    """Load weights into ``defense`` in place.

    Args:
        behind: SHA-256 of the checkpoint that the classifier behind a detector was loaded from, where it is borrowed.

    Raises:
        InputError: when the file or its record is missing, its SHA-256 is not the recorded one, its tensors
            are not those of the defense, or were fitted to another classifier than ``behind``.
    """
    record = _read_record(path)
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != record["sha256"]:
        raise InputError(f"checkpoint {path}: SHA-256 is {found}, its record says {record['sha256']}")
    try:
        tensors, words = unpack_tensors(data)
    except safetensors.SafetensorError as error:
        raise InputError(f"checkpoint {path}: is not a safetensors file: {error}") from None
    _check_shapes(_own(defense), tensors, path)
    if words.get("classifier", "") != behind:
        raise InputError(f"checkpoint {path}: was fitted to a classifier with other weights; `bench train --again`")
    defense.load_state_dict({**defense.state_dict(), **tensors})
    return Loaded(found, record["training"])


def _read_record(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"checkpoint {path}: does not exist")
    try:
        record = json.loads(record_path(path).read_text(encoding="utf-8"))
        return {"sha256": str(record["sha256"]), "training": dict(record["training"])}
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"checkpoint {path}: its record {record_path(path).name} is missing or damaged") from None


def _check_shapes(expected: dict[str, Tensor], found: dict[str, Tensor], path: Path) -> None:
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            raise InputError(f"checkpoint {path}: has no tensor {name}, which the defense needs")
        if name not in expected:
            raise InputError(f"checkpoint {path}: has a tensor {name} that the defense lacks")
        if found[name].shape != expected[name].shape:
            raise InputError(
                f"checkpoint {path}: {name} has shape {tuple(found[name].shape)}, "
                f"the defense needs {tuple(expected[name].shape)}"
            )


def _tensors(defense: Defense) -> dict[str, Tensor]:
    # Cloned because safetensors refuses tensors that share memory.
    return {name: t.detach().cpu().contiguous().clone() for name, t in _own(defense).items()}


def _own(defense: Defense) -> dict[str, Tensor]:
    """What the checkpoint of a defense holds: all its tensors, or those of a detector without a borrowed classifier."""
    state: dict[str, Tensor] = defense.state_dict()
    if not (isinstance(defense, WithDetector) and defense.borrows):
        return state
    return {name: tensor for name, tensor in state.items() if name.startswith("detector.")}
