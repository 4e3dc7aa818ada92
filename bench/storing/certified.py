"""Which examples are proven to be robust, beside a defense's rows; of randomised smoothing, up to which radius.

Layout below a defense's folder, whose name no attack can have::

    @certified/linf-0.1.json       Certificates: one row per example
    @certified/smoothed-0.25.json  Smoothed: of randomised smoothing, one row per example
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from bench.storing.digest import digest
from bench.storing.keys import DataKey, DefenseKey
from bench.storing.reading import read_or_note
from bench.storing.records import SCHEMA_VERSION, Provenance, Record, SuiteRecord
from bench.storing.store import Store, to_json, write_atomically

#: Raised when a certificate would mean something else, or one of before is found to be wrong.
CERTIFIER = 1
#: The same of randomised smoothing.
SMOOTHER = 1

_SMOOTHED = "smoothed-"

Method = Literal["interval", "relaxation", "optimised", "branch and bound", "attack", "clean", "other radius"]


class CertifiedRow(Record):
    """One example."""

    id: str
    status: Literal["certified", "broken", "open"] = Field(
        description="proven; known to be wrong somewhere in the ball, x included; neither"
    )
    method: Method = Field(description="what proved it, or came last; attack, clean: what broke it")
    bound: float | None = Field(description="lower bound of the smallest margin in the ball, in logits")
    parts: int = Field(description="of branch and bound")
    seconds: float = Field(description="processor time")
    limit: float = Field(description="the seconds it was given")


class Certificates(Record):
    """What is proven of a deterministic defense at one radius; of the suite's examples from the first on."""

    schema_version: int = SCHEMA_VERSION
    version: int = Field(default=CERTIFIER, description="of the certifier")
    defense: DefenseKey
    data: DataKey = Field(description="the examples of the rows")
    norm: str
    eps: float
    low: float
    high: float
    tolerance: float = Field(description="margin, in logits, that has to be proven")
    precision: float = Field(description="largest measured difference of the defense's own logits from those bounded")
    attack: str = Field(description="what was tried first where no stored attack had broken an example")
    provenance: Provenance
    rows: list[CertifiedRow]


class SmoothedRow(Record):
    """One example under randomised smoothing."""

    id: str
    label: int
    predicted: int = Field(description="the class that most of the selection draws gave")
    votes: int = Field(description="how many of the other draws gave it")
    p_lower: float = Field(description="lower confidence bound of the probability of that class")
    radius: float | None = Field(description="l2 radius in which it stays the likeliest; None: abstains")
    seconds: float = Field(description="processor time")


class Smoothed(Record):
    """What randomised smoothing with one noise proves, of the suite's examples from the first on.

    It is of the smoothed classifier, the class that the defense gives most often under noise: not of the defense.
    """

    schema_version: int = SCHEMA_VERSION
    version: int = Field(default=SMOOTHER, description="of the procedure")
    defense: DefenseKey
    data: DataKey = Field(description="the examples of the rows")
    norm: Literal["l2"] = "l2"
    sigma: float = Field(description="standard deviation of the noise, in the units of the box; the sum is not clipped")
    draws: int = Field(description="from which the probability is bounded")
    selection_draws: int = Field(description="others, from which the class is chosen")
    alpha: float = Field(description="probability, for each example, that its radius is too large")
    seed: int = Field(description="of the suite")
    provenance: Provenance
    rows: list[SmoothedRow]


def folder_of(store: Store, defense: str) -> Path:
    """Where a defense's certificates lie."""
    return store.defense_folder(defense) / "@certified"


def examples_key(suite: SuiteRecord, ids: list[str]) -> DataKey:
    """The component that stands for these examples of a suite."""
    known = dict(zip(suite.ids, suite.digests, strict=True))
    examples = digest(tuple(ids), tuple(known.get(example, "") for example in ids))
    return DataKey(version=suite.data_version, split=suite.split, examples=examples)


def current_certificates(
    store: Store, suite: SuiteRecord, defense: DefenseKey, unreadable: list[str] | None = None
) -> Iterator[Certificates]:
    """Those that hold of the suite's examples and the defense as they are now, the smallest radius first.

    Args:
        unreadable: gets a line for each file that cannot be read, which is then passed over.

    Raises:
        InputError: when a file cannot be read and nobody is told.
    """
    found = []
    for path in sorted(folder_of(store, defense.name).glob("*-*.json")):
        if path.name.startswith(_SMOOTHED):
            continue
        record = read_or_note(path, Certificates, unreadable)
        if record is None:
            continue
        same = (record.version, record.defense, record.norm) == (CERTIFIER, defense, suite.norm)
        box = (record.low, record.high) == (suite.low, suite.high)
        if same and box and record.data == examples_key(suite, [row.id for row in record.rows]):
            found.append(record)
    return iter(sorted(found, key=lambda record: record.eps))


def current_smoothed(
    store: Store, suite: SuiteRecord, defense: DefenseKey, unreadable: list[str] | None = None
) -> list[Smoothed]:
    """As :func:`current_certificates`, of randomised smoothing; the smallest noise first."""
    found = []
    for path in sorted(folder_of(store, defense.name).glob(f"{_SMOOTHED}*.json")):
        record = read_or_note(path, Smoothed, unreadable)
        if record is None:
            continue
        same = (record.version, record.defense, record.seed) == (SMOOTHER, defense, suite.seed)
        if same and record.data == examples_key(suite, [row.id for row in record.rows]):
            found.append(record)
    return sorted(found, key=lambda record: record.sigma)


def write_certificates(store: Store, record: Certificates) -> Path:
    """Store what is proven at one radius."""
    return _write(store, record, f"{record.norm}-{record.eps:.6g}.json")


def write_smoothed(store: Store, record: Smoothed) -> Path:
    """Store what one noise proves, in place of what it proved with other draws."""
    return _write(store, record, f"{_SMOOTHED}{record.sigma:.6g}.json")


def _write(store: Store, record: Certificates | Smoothed, name: str) -> Path:
    path = folder_of(store, record.defense.name) / name
    write_atomically(path, to_json(record).encode())
    return path
