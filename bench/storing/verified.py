"""What `bench verify` found of a defense, kept beside its results so that the site can say it.

``verified.json`` in the defense's folder.
"""

from __future__ import annotations

from pydantic import Field

from bench.contracts.errors import InputError
from bench.storing.keys import DefenseKey
from bench.storing.reading import read_record
from bench.storing.records import SCHEMA_VERSION, Provenance, Record
from bench.storing.store import Store, to_json, write_atomically


class VerificationRecord(Record):
    """All stored adversarial inputs of a defense, judged again."""

    schema_version: int = SCHEMA_VERSION
    defense: DefenseKey
    judged: int = Field(description="rows judged again, those of the unattacked input included")
    different: int = Field(description="of these, how many came out differently")
    levels: int | None = Field(description="grey levels that adversarial inputs were rounded to; None: not rounded")
    rounded: int = Field(description="rows whose adversarial input was rounded and judged")
    survive: int = Field(description="of these, how many the defense survives more once rounded")
    fall: int = Field(description="how many less")
    provenance: Provenance


def write_verification(store: Store, record: VerificationRecord) -> None:
    """Keep it, in place of an earlier one."""
    write_atomically(store.defense_folder(record.defense.name) / "verified.json", to_json(record).encode())


def verification(store: Store, key: DefenseKey) -> VerificationRecord | None:
    """What is kept of a defense as it is now; None where nothing is, or it cannot be read."""
    path = store.defense_folder(key.name) / "verified.json"
    try:
        found = read_record(path, VerificationRecord) if path.is_file() else None
    except InputError:
        return None
    return found if found is not None and found.defense == key else None
