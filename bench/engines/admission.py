"""Whether a worker on another machine would compute what this machine computes: same versions, same code."""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from bench.contracts.errors import InputError

#: The packages of this project, whose files have to be the same.
_OURS = ("attacks", "bench", "defenses")
#: Libraries whose version can change a row.
_LIBRARIES = ("torch", "torchvision", "numpy")


class DiffersHere(InputError):
    """In a worker: a defense or an attack is not what it was when the run was planned. Not the job's fault."""


def facts() -> dict[str, str]:
    """What has to be the same on every machine of a run, by what it is called in a sentence."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found | {f"the code of {name}": _code(name) for name in _OURS}


def _code(package: str) -> str:
    """The first digits of SHA-256 over the source files of a package, by their names and contents."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return "not installed"
    sha = hashlib.sha256()
    root = Path(next(iter(spec.submodule_search_locations)))
    for path in sorted(root.rglob("*.py")):
        sha.update(path.relative_to(root).as_posix().encode())
        sha.update(hashlib.sha256(path.read_bytes()).digest())
    return sha.hexdigest()[:12]


def objections(here: dict[str, str], there: dict[str, str]) -> list[str]:
    """Why a worker with the facts ``there`` is not admitted; empty when it is."""
    names = sorted(here.keys() | there.keys())
    return [
        f"{name} is {there.get(name, 'unknown')} there, {here.get(name, 'unknown')} here"
        for name in names
        if here.get(name) != there.get(name)
    ]
