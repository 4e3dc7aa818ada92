"""Checkpoints that nothing evaluates any more: `bench status` lists them, nobody deletes them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.contracts.defense import Defense
from bench.contracts.errors import InputError
from bench.contracts.threat import Lp
from bench.data.folder import is_one
from bench.data.load import PUBLISHED, load_data
from bench.plugins.registry import DEFENSES
from bench.storing.checkpoints import IDENTITY, checkpoints_folder, file_stem, records
from bench.suites.config import Suite


@dataclass(frozen=True)
class Unused:
    """A checkpoint that no suite evaluates, and why, as the rest of a sentence."""

    path: Path
    reason: str


def unused_checkpoints(suites: Collection[Suite], folder: Path | None = None) -> list[Unused]:
    """The checkpoints that none of the suites evaluates, by path.

    A variant counts as evaluated when a suite asks for weights like these, whatever defenses it has been run on.

    Args:
        suites: all of a configuration.
        folder: of checkpoints; default: those of all registered defenses.
    """
    registered, _ = DEFENSES.load_all()
    classes = {name: obj for name, obj in registered.items() if isinstance(obj, type)}
    folders = {checkpoints_folder(cls) for cls in classes.values()} if folder is None else {folder}
    found = []
    for variant in sorted(path for each in folders for path in each.glob("*/")):
        for path, training in records(variant):
            reason = _why(path, training, classes, suites)
            if reason:
                found.append(Unused(path, reason))
    return found


def _why(path: Path, training: dict[str, Any], classes: dict[str, type], suites: Collection[Suite]) -> str:
    """Why no suite evaluates it; empty when one does."""
    if any(field not in training for field in IDENTITY):
        return "its record is missing, damaged or does not say what it was trained for"
    if path.stem != file_stem(training):
        return "its name is not the one that its record gives it"
    cls = classes.get(training["defense"].partition("(")[0])
    if cls is not None and issubclass(cls, Defense) and cls.recipe_version != training["recipe_version"]:
        return f"the recipe's version was {training['recipe_version']}, is {cls.recipe_version}"
    data, threat, seed = training["data"], training["threat"], training["seed"]
    on_its_data = [suite for suite in suites if _data_name(suite.data) == data]
    if not on_its_data:
        return f"no suite has the data {data}"
    for suite in on_its_data:
        asked = suite.weights
        wanted = suite.seed if asked.seed is None else asked.seed
        exact = path.with_name(f"{file_stem({**training, 'seed': wanted})}.safetensors")
        seed_fits = wanted == seed or (asked.seed is None and not exact.is_file())
        if seed_fits and threat in (None, {"norm": asked.norm, "eps": asked.eps}):
            return ""
    ball = "" if threat is None else f"{Lp(threat['norm'], threat['eps'])}, "
    return f"no suite on {data} asks for weights trained for {ball}seed {seed}"


def _data_name(reference: str) -> str:
    """The name of a data set, which need not be there; a folder's and a function's are known once they were read."""
    if reference in PUBLISHED:
        return reference
    kind, _, argument = reference.partition(":")
    if kind == "folder" and not is_one(Path(argument).expanduser()):
        return Path(argument).name
    if kind == "file":
        return Path(argument).stem
    try:
        return load_data(reference).info.name
    except InputError:
        return reference
