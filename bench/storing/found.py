"""Adversarial inputs that somebody has found, beside the rows of the suite's own attacks.

Layout below a defense's folder, whose name no attack can have::

    @found/000.json           FoundRecord: one row per example that it lowers
    @found/000.safetensors    their x_adv, float32 (N, …), key "x_adv"

They are numbered in the order in which they were accepted, and none is taken away: the first so many of them give the
worst case as it was then.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import safetensors
import safetensors.torch
from pydantic import Field
from torch import Tensor

from bench.contracts.errors import InputError
from bench.contracts.isolation import Level
from bench.storing.digest import digest
from bench.storing.keys import DataKey, Key, Sparse
from bench.storing.reading import read_or_note
from bench.storing.records import (
    SCHEMA_VERSION,
    AttackRecord,
    DefenseRecord,
    Keyed,
    Provenance,
    Row,
    SuiteRecord,
)
from bench.storing.store import Store, pack_tensors, read_vouched, to_json, write_atomically

#: The name under which they stand beside the attacks of a suite.
FOUND = "submitted x_adv"


class FoundRecord(Sparse, Keyed):
    """Adversarial inputs that lower a defense's worst case, judged on draws of their own."""

    schema_version: int = SCHEMA_VERSION
    key: Key = Field(description="what the rows were made of; its seed was drawn when they were judged")
    number: int = Field(description="their place in the order of acceptance")
    by: str = Field(description="who found them")
    note: str = Field(default="", description="what there is to say, such as a paper")
    accepted: str = Field(description="when, ISO 8601, UTC")
    batch_size: int = Field(description="rows per judging pass")
    x_adv_sha256: str = Field(default="", description="of the safetensors file beside this one")
    towards: list[int] | None = Field(default=None, description="the class each row had to reach; None: untargeted")
    isolation: Level = Field(default="none", description="how far the defense was kept apart from its judge")
    provenance: Provenance
    rows: list[Row]


def found_attack(suite: SuiteRecord) -> AttackRecord:
    """How they are shown beside the attacks of a suite: what their makers knew is not known."""
    return AttackRecord(
        name=FOUND,
        function=FOUND,
        knowledge="unknown",
        params={},
        eps=suite.eps,
        version=1,
        counted=True,
        summary="Adversarial inputs that were submitted, or found when a submission was accepted.",
    )


def found_key(
    suite: SuiteRecord, defense: DefenseRecord, ids: list[str], seed: int, *, torch: str, device: str
) -> Key:
    """What rows of these examples are made of.

    Args:
        seed: of the draws on which they are judged.
        torch: major.minor; device: its type.
    """
    known = dict(zip(suite.ids, suite.digests, strict=True))
    examples = digest(tuple(ids), tuple(known.get(example, "") for example in ids))
    whole = suite.whole_key(defense, None, torch=torch, device=device)
    return whole.model_copy(
        update={
            "attack": found_attack(suite).key(detector=False),
            "data": DataKey(version=suite.data_version, split=suite.split, examples=examples),
            "suite": whole.suite.model_copy(update={"seed": seed}),
        }
    )


def found_folder(store: Store, defense: str) -> Path:
    """Where a defense's lie."""
    return store.defense_folder(defense) / "@found"


def found_files(store: Store, defense: str) -> list[Path]:
    """Their records, in the order of acceptance."""
    return sorted(found_folder(store, defense).glob("[0-9]*.json"))


def current_found(
    store: Store, suite: SuiteRecord, defense: DefenseRecord, unreadable: list[str] | None = None
) -> Iterator[FoundRecord]:
    """Those whose numbers stand for the suite and the defense as they are stored, whichever machine judged them.

    Args:
        unreadable: gets a line for each file that cannot be read, which is then passed over.

    Raises:
        InputError: when a file cannot be read and nobody is told.
    """
    for path in found_files(store, defense.name):
        record = read_or_note(path, FoundRecord, unreadable)
        if record is None:
            continue
        ids = [row.id for row in record.rows]
        if record.key.same_numbers(found_key(suite, defense, ids, record.key.suite.seed, torch="", device="")):
            yield record


def read_found_images(store: Store, record: FoundRecord) -> Tensor:
    """The adversarial inputs of a record, ``(N, …)``.

    Raises:
        InputError: when the file is missing or its SHA-256 differs from the record's.
    """
    path = found_folder(store, record.key.defense.name) / f"{record.number:03d}.safetensors"
    try:
        return safetensors.torch.load(read_vouched(path, record.x_adv_sha256))["x_adv"]
    except (safetensors.SafetensorError, KeyError):
        raise InputError(f"{path}: holds no x_adv") from None


def write_found(store: Store, record: FoundRecord, x_adv: Tensor) -> Path:
    """Store a record: the images first, then the record that vouches for them, which is the one step that counts."""
    folder = found_folder(store, record.key.defense.name)
    data = pack_tensors({"x_adv": x_adv.detach().float()})
    record = record.model_copy(update={"x_adv_sha256": hashlib.sha256(data).hexdigest()})
    path = folder / f"{record.number:03d}.json"
    write_atomically(path.with_suffix(".safetensors"), data)
    write_atomically(path, to_json(record).encode())
    return path
