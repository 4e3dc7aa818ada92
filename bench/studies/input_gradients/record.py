"""The record of the study of input gradients: ``<suite>/<defense>/input_gradients.json`` below a results folder."""

from __future__ import annotations

from pydantic import Field

from bench.storing.keys import DefenseKey
from bench.storing.reading import read_record
from bench.storing.records import SCHEMA_VERSION, Provenance, Record
from bench.storing.store import Store, to_json, write_atomically

FILE = "input_gradients.json"


class MaskedPGD(Record):
    """Accuracy under PGD that may change some of the pixels."""

    pixels: str = Field(description="none (clean), all, designated, others, or top and rest of the heat map")
    changeable: int = Field(description="how many pixels that is")
    norm: str
    eps: float
    accuracy: float = Field(description="share of right answers over examples and draws")
    n: int = Field(description="examples")
    draws: int = Field(description="per example")
    steps: int
    restarts: int
    loss: str
    estimator: str
    seed: int


class InputGradients(Record):
    """Where a defense can be attacked (see ``bench.studies.input_gradients.measure``)."""

    schema_version: int = SCHEMA_VERSION
    defense: DefenseKey | None = Field(default=None, description="what was measured")
    heat_map: list[list[float]] = Field(description="mean of |dCE/dx| per pixel: H rows of W values")
    top: list[list[int]] = Field(description="1 for the share of the pixels with the largest of these, else 0")
    designated: list[list[int]] | None = Field(description="1 for the pixels that the defense designates")
    iou: float | None = Field(description="intersection over union of top and designated")
    chance_iou: float | None = Field(description="its expected value for a heat map that knows nothing of them")
    share: float = Field(description="of the pixels in top")
    n: int = Field(description="examples of the heat map")
    gradient_draws: int = Field(description="passes per example of the heat map")
    seed: int
    accuracies: list[MaskedPGD]
    provenance: Provenance | None = None


def read(store: Store, defense: str) -> InputGradients | None:
    """What was measured of a defense; None when nothing was.

    Raises:
        InputError: when the file cannot be read.
    """
    path = store.defense_folder(defense) / FILE
    return read_record(path, InputGradients) if path.exists() else None


def write(store: Store, defense: str, record: InputGradients) -> None:
    """Store it beside the defense's results."""
    write_atomically(store.defense_folder(defense) / FILE, to_json(record).encode())
