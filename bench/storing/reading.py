"""Reading what is stored, each file checked field by field, and saying which one is not as it should be."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from bench.contracts.errors import InputError, NewerSchemaError
from bench.storing.joined import JOINED, joined
from bench.storing.records import SCHEMA_VERSION, Record, ShardRecord

R = TypeVar("R", bound=Record)


def read_record(path: Path, kind: type[R], rows: bool = True) -> R:
    """Read one JSON record.

    Args:
        rows: False to leave the values in the rows of a shard unread, which then has none: most of the time a shard
            takes goes into checking these.

    Raises:
        NewerSchemaError: when the file is of a newer schema.
        InputError: when it is not such a record.
    """
    try:
        raw = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    return _record(str(path), raw, kind, rows)


def _record(where: str, raw: Any, kind: type[R], rows: bool) -> R:
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if not isinstance(version, int):
        raise InputError(f"{where}: has no schema_version")
    if version < SCHEMA_VERSION:
        raise InputError(f"{where}: schema version {version} is older than {SCHEMA_VERSION}; run bench evaluate again")
    if version > SCHEMA_VERSION:
        raise NewerSchemaError(
            f"{where}: schema version {version} is newer than {SCHEMA_VERSION}, the newest this version reads; "
            "upgrade worst-case-bench"
        )
    stored = len(raw.get("rows", []))
    if "rows" in raw:
        columns = raw.get("columns", [])
        if any(len(row) != len(columns) for row in raw["rows"]):
            raise InputError(f"{where}: rows: a row has not the {len(columns)} values that columns names")
        named = [dict(zip(columns, row, strict=True)) for row in raw["rows"]] if rows else []
        raw = {key: value for key, value in raw.items() if key != "columns"} | {"rows": named}
    try:
        record = kind(**raw)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        part = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{where}: {part}: {first['msg']}") from None
    if isinstance(record, ShardRecord) and record.status == "ok" and stored != record.stop - record.start:
        raise InputError(f"{where}: rows: there are {stored}, of {record.stop - record.start} examples")
    return record


@dataclass(frozen=True)
class ShardFile:
    """Where a shard is stored: in a file of its own, or in one with the others of its cell (``is_joined``)."""

    path: Path
    number: int

    def __str__(self) -> str:
        return f"{self.path}: shard {self.number}" if self.is_joined and self.number >= 0 else str(self.path)

    @property
    def is_joined(self) -> bool:
        return self.path.name == JOINED

    def read(self, rows: bool = True) -> ShardRecord:
        """:func:`read_record` of it.

        Raises:
            NewerSchemaError, InputError: as there.
        """
        if not self.is_joined:
            return read_record(self.path, ShardRecord, rows)
        try:
            raw = joined(self.path)[self.number]
        except KeyError:
            raise InputError(f"{self}: is missing") from None
        except (OSError, ValueError) as error:
            raise InputError(f"{self.path}: cannot be read: {error}") from None
        return _record(str(self), raw, ShardRecord, rows)

    def read_or_note(self, unreadable: list[str] | None, rows: bool = True) -> ShardRecord | None:
        """:func:`read_or_note` of it."""
        return _or_note(lambda: self.read(rows), unreadable)


def read_or_note(path: Path, kind: type[R], unreadable: list[str] | None) -> R | None:
    """:func:`read_record`; None where it cannot be read and ``unreadable`` got a line that says so.

    Raises:
        InputError: when it cannot be read and nobody is told: ``unreadable`` is None.
    """
    return _or_note(lambda: read_record(path, kind), unreadable)


def _or_note(read: Callable[[], R], unreadable: list[str] | None) -> R | None:
    try:
        return read()
    except InputError as error:
        if unreadable is None:
            raise
        unreadable.append(str(error))
        return None


def shard_files(folder: Path, names: Collection[str], together: Iterable[int] | None = None) -> dict[int, ShardFile]:
    """Of the files in a cell's folder the shards by their numbers, in order; one of its own before a joined one.

    Args:
        names: of the files.
        together: numbers of the joined ones, which are looked up where that is None.

    Returns:
        By number; -1 stands for joined shards that cannot be read, whose numbers nobody knows.
    """
    found = dict[int, ShardFile]()
    for name in names:
        stem, _, rest = name.partition(".")
        if rest == "json" and stem.isdecimal():
            found[int(stem)] = ShardFile(folder / name, int(stem))
    if JOINED in names:
        for number in _numbers(folder / JOINED) if together is None else together:
            found.setdefault(number, ShardFile(folder / JOINED, number))
    return dict(sorted(found.items()))


def _numbers(path: Path) -> Iterable[int]:
    try:
        return joined(path)
    except (OSError, ValueError):
        return [-1]
