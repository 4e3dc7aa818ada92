"""Keys: what a stored result was made of, as named components.

A shard is run again when one of its components differs from what it would be made of now, and for no other reason.
Code is not hashed: attacks, defenses, data sets and the protocol declare a ``version``, an integer that is raised when
their behaviour changes (tests compare their fingerprints, see ``tests/fingerprints``). Only a plugin that declares none
is hashed, over its own files alone. How a run is cut up (shard size, batch size, engine, workers) is no part of a key.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

#: Versions of the judge, of the random streams and of the meaning of a row; a suite is run under one of them.
#:
#: 1: streams are named after defense, attack and shard; a point is judged as the attack returned it.
#: 2: streams are named after the examples and what the attack is, so that no seed says who asks; the grey levels next
#:    to a point are judged as well.
Protocol = Literal[1, 2]

#: The one for everything that is new. Raised when the same inputs would give other rows.
PROTOCOL: Protocol = 2

#: How attacks that are shown a detector deal with it: raised when they would find other points because of that alone.
#: Versions of attacks speak of what they do where there is none.
AWARENESS = 5


class Sparse(BaseModel):
    """Leaves out what is None by default when it is written: a file of before a field was added stays as it is."""

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields, raw = type(self).model_fields, handler(self)
        return {name: value for name, value in raw.items() if value is not None or fields[name].is_required()}


class Component(Sparse):
    """Base of the components of a key."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SuiteKey(Component):
    """The threat model, and the seed that all randomness is derived from."""

    norm: str
    eps: float
    seed: int
    towards: str | None = Field(default=None, description="how the class to reach is chosen; None: untargeted")


class DataKey(Component):
    """The examples of the shard."""

    version: int = Field(description="declared by the data set: decoding, ids, order, splits")
    split: str
    examples: str = Field(description="SHA-256 over images, labels and ids")


class DefenseKey(Component):
    """What was attacked."""

    name: str
    version: int | str = Field(description="declared; of a plugin without one a hash of its own files")
    params: dict[str, Any]
    weights: str = Field(description="SHA-256 over parameters and buffers")
    libraries: dict[str, str] = Field(description="versions of the libraries that the defense says it depends on")


class AttackKey(Component):
    """What attacked."""

    name: str
    function: str = Field(description="the registered attack behind the name")
    version: int | str = Field(description="declared; of a plugin without one a hash of its own files")
    knowledge: str
    params: dict[str, Any]
    eps: float
    tier: str | None = Field(default=None, description="what it was shown of the detector; None: the defense has none")
    awareness: int | None = Field(
        default=None, description="version of how attacks deal with a detector; None: this one was shown none"
    )
    randomised_version: int | None = Field(
        default=None, description="declared, of what it does to a randomised defense; None: that goes by the version"
    )


class JudgingKey(Component):
    """How often a randomised defense was asked, the detector's threshold, and at which points."""

    draws_select: int
    draws_report: int
    threshold: float | None
    as_returned: bool = Field(
        default=False, description="whether the grey levels next to a point are left alone under protocol 2"
    )


#: Parts of an attack's key that no random stream depends on.
_VERSIONS = {"version", "randomised_version", "awareness"}


class Key(Component):
    """Everything that a shard's rows are made of."""

    protocol: int
    suite: SuiteKey
    data: DataKey
    defense: DefenseKey
    attack: AttackKey | None = Field(description="None: the unattacked input")
    judging: JudgingKey
    torch: str = Field(description="major.minor: float operations may differ from one to the next")
    device: str = Field(description="cpu or cuda")

    def stream(self, shard: int) -> tuple[object, ...]:
        """Names of the shard's random streams, to which what a stream is for is added.

        Args:
            shard: the shard's number, which the first protocol uses.
        """
        if self.protocol == 1:
            return self.suite.seed, self.defense.name, "clean" if self.attack is None else self.attack.name, shard
        attack = None
        if self.attack is not None:
            attack = self.attack.model_dump(mode="json", exclude=_VERSIONS | {"name"})
        return self.suite.seed, self.data.examples, json.dumps(attack, sort_keys=True)

    def same_numbers(self, other: Key) -> bool:
        """Whether two keys differ in nothing but the machine: another torch or device."""
        return self == other.model_copy(update={"torch": self.torch, "device": self.device})


#: How a component is called in a sentence.
_NAMES = {
    "protocol": "the protocol's version",
    "suite.norm": "the norm",
    "suite.eps": "the radius",
    "suite.seed": "the seed",
    "suite.towards": "the class to reach",
    "data.version": "the data set's version",
    "data.split": "the split",
    "data.examples": "the examples themselves",
    "defense.name": "the defense's name",
    "defense.version": "the defense's version",
    "defense.params": "the defense's parameters",
    "defense.weights": "the defense's weights",
    "defense.libraries": "a library that the defense depends on",
    "attack": "the attack",
    "attack.name": "the attack's name",
    "attack.function": "the attack behind the name",
    "attack.version": "the attack's version",
    "attack.knowledge": "the attack's knowledge",
    "attack.params": "the attack's parameters",
    "attack.eps": "the attack's radius",
    "attack.tier": "what the attack is shown of the detector",
    "attack.awareness": "the version of how attacks deal with a detector",
    "attack.randomised_version": "the attack's version on randomised defenses",
    "judging.draws_select": "the draws on which the worst attack is chosen",
    "judging.draws_report": "the draws on which an attack is scored",
    "judging.threshold": "the detector's threshold",
    "judging.as_returned": "whether points are judged as the attack returned them",
    "torch": "torch",
    "device": "the device",
}


def differences(stored: Component, now: Component, path: str = "") -> list[str]:
    """A phrase for each component that differs, such as ``the attack's parameters: steps was 40, is 100``.

    Args:
        path: what two parts of a key are called in it: ``defense``; "" for whole keys.
    """
    return [f"{_NAMES[where]}: {_change(old, new)}" for where, old, new in _differing(path, stored, now)]


def _differing(path: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    if old == new:
        return
    if isinstance(old, Component) and isinstance(new, Component):
        for name in type(new).model_fields:
            below = f"{path}.{name}" if path else name
            yield from _differing(below, getattr(old, name), getattr(new, name))
    else:
        yield path, old, new


def _change(old: Any, new: Any) -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        names = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
        return ", ".join(f"{name} {_was(old.get(name), new.get(name))}" for name in names)
    return _was(old, new)


def _was(old: Any, new: Any) -> str:
    if all(isinstance(value, str) and len(value) == 64 for value in (old, new)):
        return f"was {old[:8]}…, is {new[:8]}…"
    return f"was {_written(old)}, is {_written(new)}"


def _written(value: Any) -> str:
    if value is None:
        return "none"
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
