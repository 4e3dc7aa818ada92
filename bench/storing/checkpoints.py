"""Weights on disk: a safetensors file beside a JSON record that holds its SHA-256 and how it was trained.

Nothing is pickled. A file that is missing, damaged or made for another network is refused with one line.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from bench.contracts.defense import Defense, count_parameters
from bench.contracts.errors import InputError
from bench.storing.store import slug, write_atomically


@dataclass(frozen=True)
class Loaded:
    """What was loaded: the SHA-256 of the file and its training record."""

    sha256: str
    training: dict[str, Any]


def checkpoint_path(defense: Defense, name: str, folder: Path | None = None) -> Path:
    """Where the weights of a defense lie: ``<folder>/<variant>/<data set>.safetensors``.

    Args:
        defense: decides the data set and the default folder.
        name: of the variant, ``DefenseSpec.name``.
        folder: default: ``checkpoints`` beside the file that defines the class of ``defense``, or in the outermost
            folder of the package that it is in.
    """
    if folder is None:
        folder = _home(Path(inspect.getfile(defense.author)).resolve()) / "checkpoints"
    return folder / slug(name) / f"{slug(defense.data.name)}.safetensors"


def _home(file: Path) -> Path:
    """The folder of a file; within a package that of the whole package, so that its parts share their checkpoints."""
    folder = file.parent
    while (folder / "__init__.py").is_file() and (folder.parent / "__init__.py").is_file():
        folder = folder.parent
    return folder


def record_path(path: Path) -> Path:
    """The JSON record beside a checkpoint."""
    return path.with_suffix(".json")


def save(defense: Defense, path: Path, training: dict[str, Any]) -> Loaded:
    """Write the weights and, after them, the record ``{sha256, size, num_parameters, training}``.

    Each file is written whole or not at all; a record that belongs to older weights fails the next
    :func:`load_` by its SHA-256.
    """
    data = safetensors.torch.save(_tensors(defense))
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


def load_(defense: Defense, path: Path) -> Loaded:
    """Load weights into ``defense`` in place.

    Raises:
        InputError: when the file or its record is missing, its SHA-256 is not the recorded one, or its tensors
            are not those of the defense.
    """
    record = _read_record(defense, path)
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != record["sha256"]:
        raise InputError(f"checkpoint {path}: SHA-256 is {found}, its record says {record['sha256']}")
    try:
        tensors = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise InputError(f"checkpoint {path}: is not a safetensors file: {error}") from None
    _check_shapes(defense.state_dict(), tensors, path)
    defense.load_state_dict(tensors)
    return Loaded(found, record["training"])


def _read_record(defense: Defense, path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(
            f"checkpoint {path}: does not exist; make it with "
            f"`bench train --defense {_options(path.parent.name)} --suite SUITE` (a suite on {defense.data.name})"
        )
    try:
        record = json.loads(record_path(path).read_text(encoding="utf-8"))
        return {"sha256": str(record["sha256"]), "training": dict(record["training"])}
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"checkpoint {path}: its record {record_path(path).name} is missing or damaged") from None


def _options(variant: str) -> str:
    """A variant's name as options of the command: ``ours(steps=3)`` is ``ours --set steps=3``."""
    name, _, params = variant.removesuffix(")").partition("(")
    return " --set ".join([name, *filter(None, params.split(","))])


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
    return {name: t.detach().cpu().contiguous().clone() for name, t in defense.state_dict().items()}
