"""What a defense was submitted with, kept beside its results: code, weights, environment, and what was claimed.

Layout below a defense's folder, whose name no attack can have: ``@submission/``, the bundle without its rows and
images, and ``acceptance.json``, an :class:`AcceptanceRecord`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from bench.contracts.defense import DefenseSpec
from bench.contracts.errors import InputError
from bench.storing.reading import read_record
from bench.storing.records import SCHEMA_VERSION, DefenseRecord, Provenance, Record
from bench.storing.store import Store


class AcceptanceRecord(Record):
    """``acceptance.json``: who submitted, what was claimed, and what was found when it was accepted."""

    schema_version: int = SCHEMA_VERSION
    by: str
    note: str = ""
    submitted: str = Field(description="when the bundle was made, ISO 8601")
    accepted: str = Field(description="when it was accepted, ISO 8601")
    reference: str = Field(description="how the defense is built from this folder, or its shipped name")
    params: dict[str, Any] = Field(default={})
    standard: float = Field(description="standard accuracy that was claimed, in [0, 1]")
    worst_case: float = Field(description="worst-case robust accuracy that was claimed, in [0, 1]")
    judged: int = Field(description="rows judged again")
    again: dict[str, list[int]] = Field(
        description="attacks run anew with another seed: examples that fell although they had stood, and the reverse"
    )
    isolation: str | None = Field(default=None, description="level under which it was judged, where recorded")
    provenance: Provenance


def submission_folder(store: Store, defense: str) -> Path:
    """Where it lies."""
    return store.defense_folder(defense) / "@submission"


def bundled_spec(folder: Path, reference: str, params: dict[str, Any]) -> DefenseSpec:
    """How a defense is built from the code and the weights of a bundle, or of what is kept of one."""
    weights = folder / "weights"
    if not reference.startswith("code/"):
        return DefenseSpec(reference, params, weights if weights.is_dir() else None)
    return DefenseSpec(str(folder / reference), params, weights)


def acceptance(store: Store, defense: str) -> AcceptanceRecord | None:
    """How a defense was accepted; None of one that was not submitted, or whose record cannot be read."""
    path = submission_folder(store, defense) / "acceptance.json"
    try:
        return read_record(path, AcceptanceRecord) if path.is_file() else None
    except InputError:
        return None


def submitted_spec(store: Store, record: DefenseRecord) -> DefenseSpec | None:
    """How a submitted defense is built from what it was submitted with; None of any other."""
    found = acceptance(store, record.name)
    folder = submission_folder(store, record.name)
    return None if found is None else bundled_spec(folder, found.reference, found.params)
