"""The record of the study of a transformation: ``<suite>/<defense>/transformation.json`` below a results folder.

Rows and images, not conclusions: those are drawn from it by ``bench.studies.transformation.claims``.
"""

from __future__ import annotations

from pydantic import Field

from bench.storing.keys import DefenseKey
from bench.storing.reading import read_record
from bench.storing.records import SCHEMA_VERSION, Provenance, Record
from bench.storing.store import Store, to_json, write_atomically

FILE = "transformation.json"


class Base(Record):
    """A classifier to set the defense beside, attacked as one: without a transform, deterministic."""

    name: str = Field(description="guide, classifier, or the name of another defense")
    right: list[bool] = Field(description="of each example, whether the clean input is classified right")
    robust: list[bool] = Field(description="of each example, whether it stays right under the attack as well")
    attack: str = Field(description="the attack that decided")
    seconds: float | None = Field(description="CPU time of 1000 inputs, the least of several, in turn with others")
    training_seconds: float | None = Field(default=None, description="of its own training, if any, by its record")


class Expectation(Record):
    """An image and where the transformation moves it on average: values from 0 to 255, as base64 of H·W·C bytes."""

    id: str
    label: int
    shape: tuple[int, int, int] = Field(description="(H, W, C)")
    image: str
    shift: str = Field(description="E[g(x)] - x, moved and scaled: 127.5 is none")
    scale: float = Field(description="the largest |E[g(x)] - x|, which is what 0 and 255 stand for")


class FixedStart(Record):
    """Accuracy at points that were made for one start noise."""

    own: float = Field(description="with that noise")
    fresh: float = Field(description="with fresh noise: the defense as it is")
    clean: float = Field(description="of the clean inputs with that noise")


class Transformation(Record):
    """What a transformation does, and what stands without it (see ``bench.studies.transformation.measure``)."""

    schema_version: int = SCHEMA_VERSION
    defense: DefenseKey | None = Field(default=None, description="what was measured")
    ids: list[str] = Field(description="of the examples")
    draws: int = Field(description="of g, behind each expectation")
    mean: float = Field(description="mean over images of the mean |E[g(x)] - x| per value")
    rms: float = Field(description="mean over images of its root mean square")
    largest: float = Field(description="mean over images of its largest value")
    expectations: list[Expectation]
    seconds: float = Field(description="CPU time of 1000 inputs, the least of several, in turn with the bases'")
    training_seconds: float | None = Field(default=None, description="of its training, as in the checkpoint's record")
    bases: list[Base]
    fixed_start: FixedStart | None = Field(default=None, description="None where the defense declares no such variant")
    provenance: Provenance | None = None

    def base(self, name: str) -> Base | None:
        """The base of that name, if it was measured."""
        return next((base for base in self.bases if base.name == name), None)


def read(store: Store, defense: str) -> Transformation | None:
    """What was measured of a defense; None when nothing was.

    Raises:
        InputError: when the file cannot be read.
    """
    path = store.defense_folder(defense) / FILE
    return read_record(path, Transformation) if path.exists() else None


def write(store: Store, defense: str, record: Transformation) -> None:
    """Store it beside the defense's results."""
    write_atomically(store.defense_folder(defense) / FILE, to_json(record).encode())
