"""Headers of stored shards, noted beside them, so that a plan opens only the shards that changed since it last looked.

A note is of one cell and says of each shard what its file said without its rows, and by what the file is known again:
name, size, inode, and the times of its last change. It is derived and can be removed at any time. It counts for a shard
only while all of these are what they were, for the record and for its adversarial inputs; a note that is missing,
damaged, of another version of the records, or of before something was changed means that the shard is read.

A file that was changed just before it was looked at may be changed once more without its times showing it, since these
go in ticks. What is noted of such a file does not count. When that look was, the note's own time tells, which the same
file system gave it, less what went by until it was written: so neither the clock of another machine nor one that is
set back makes an old header count.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pydantic

from bench.contracts.errors import InputError, NewerSchemaError
from bench.storing.digest import digest
from bench.storing.joined import JOINED
from bench.storing.keys import DataKey, Key
from bench.storing.reading import ShardFile, shard_files
from bench.storing.records import ShardRecord, SuiteRecord
from bench.storing.store import Store, write_atomically

#: Statuses of a shard after which it is not run again.
SETTLED = ("ok", "not-applicable")
#: Raised when a note would mean something else.
_VERSION = 2
#: Nanoseconds that a file has to be older than the look at it: the coarsest file systems count two seconds.
_TICK = 2_000_000_000


class Header(NamedTuple):
    """What a stored shard says of itself, without its rows.

    Attributes:
        start, stop: positions of its examples in the suite.
        whole: the key of what it was made of, but for the examples; the same object for shards of the same.
        data: the component of the key that stands for the examples.
        problem: why it has to be run again, whatever it was made of; empty where it has not.
    """

    start: int
    stop: int
    whole: Key
    data: DataKey
    problem: str = ""

    @property
    def key(self) -> Key:
        """What it was made of."""
        return self.whole.model_copy(update={"data": self.data})


#: In place of the component that ``Header.whole`` lacks.
_NO_DATA = DataKey(version=0, split="", examples="")

#: By what a file is known again: name, size, time of the last change of its content, of its inode, and inode; empty
#: where there is no file.
_Mark = tuple[str, int, int, int, int] | tuple[()]


@dataclass
class _Note:
    """What is noted of one cell: its distinct keys, and by a shard's number its marks and its header.

    ``joined`` is the mark of the file of joined shards, and ``together`` their numbers.
    """

    keys: dict[str, Key] = field(default_factory=dict)
    joined: _Mark = ()
    together: tuple[int, ...] = ()
    headers: dict[int, tuple[_Mark, _Mark, Header]] = field(default_factory=dict)


class Headers:
    """Reads the headers of a suite's shards. Nothing is written but by :meth:`write`.

    Args:
        suite: as it is now, which says what the shards' examples would be made of.
    """

    def __init__(self, store: Store, suite: SuiteRecord) -> None:
        self.store, self.suite = store, suite
        self._fresh: dict[Path, tuple[int, bytes]] = {}  # when it was looked at, and the note
        self._data: dict[tuple[int, str, str], DataKey] = {}
        self._now: dict[tuple[int, int], DataKey] = {}

    def examples(self, start: int, stop: int) -> DataKey:
        """The component of a key that stands for these examples now: the object that headers which have it hold."""
        if (start, stop) not in self._now:
            now = self.suite.data_key(start, stop)
            self._now[start, stop] = self._data_key(now.version, now.split, now.examples)
        return self._now[start, stop]

    def read(self, defense: str, attack: str) -> Iterator[tuple[int, Header | str]]:
        """Every stored shard of a cell by its number, in order: its header, or why it cannot be read.

        Raises:
            NewerSchemaError: when a file is of a newer schema: it is not to be replaced.
        """
        looked, folder = time.monotonic_ns(), self.store.shard_path(defense, attack, 0).parent
        there = _marks(folder)
        path = self.store.headers_path(defense, attack)
        noted = self._noted(path) if there else _Note()
        mark = there.get(JOINED, ())
        files = shard_files(folder, there, noted.together if mark and mark == noted.joined else None)
        now = _Note(noted.keys, mark, tuple(number for number, file in files.items() if file.is_joined))
        same = noted.headers.keys() == files.keys()
        for number, file in files.items():
            own, stem = there[file.path.name], f"{number:03d}.safetensors"
            images = there.get(stem) or there.get(f"{stem}.gz") or ()
            known = noted.headers.get(number)
            if known is not None and known[0] == own and known[1] == images:
                now.headers[number] = known
                yield number, known[2]
                continue
            same = False
            header = self._read(file, now)
            if isinstance(header, Header) and not header.problem:
                now.headers[number] = own, images, header
            yield number, header
        if files and not same:
            self._fresh[path] = looked, _packed(now)

    def write(self) -> None:
        """Note what had to be read; where that cannot be written, it is read again the next time."""
        for path, (looked, rest) in self._fresh.items():
            data = f"{time.monotonic_ns() - looked}\n".encode() + rest
            with contextlib.suppress(OSError):
                write_atomically(path, f"{_check(data)}\n".encode() + data, flush=False)
        self._fresh.clear()

    def _read(self, file: ShardFile, note: _Note) -> Header | str:
        try:
            shard = file.read(rows=False)
        except NewerSchemaError:
            raise
        except InputError as error:
            return str(error)
        problem = self.store.cut_off(shard)
        if not problem and shard.status not in SETTLED:
            lines = shard.error.strip().splitlines()
            problem = f"{shard.status}: {lines[-1] if lines else 'no reason was stored'}"
        whole = shard.key.model_copy(update={"data": _NO_DATA})
        whole = note.keys.setdefault(_key_text(whole), whole)
        data = shard.key.data
        return Header(shard.start, shard.stop, whole, self._data_key(data.version, data.split, data.examples), problem)

    def _data_key(self, version: int, split: str, examples: str) -> DataKey:
        """One object for all cells, which have the same shards."""
        named = version, split, examples
        if named not in self._data:
            self._data[named] = DataKey(version=version, split=split, examples=examples)
        return self._data[named]

    def _noted(self, path: Path) -> _Note:
        """What is noted of a cell and counts, as far as its file can tell."""
        try:
            with path.open("rb") as file:
                check, _, data = file.read().partition(b"\n")
                written = os.fstat(file.fileno()).st_mtime_ns
            if check.decode() != _check(data):
                return _Note()
            since, _, rest = data.partition(b"\n")
            limit = written - int(since) - _TICK
            keys, rows, together, mark = json.loads(rest)
            note, wholes = _Note(), [Key(**key, data=_NO_DATA) for key in keys]
            note.keys = dict(zip(map(_key_text, wholes), wholes, strict=True))
            if mark and max(mark[2:4]) < limit:
                note.joined, note.together = tuple(mark), tuple(together)
            for number, record, images, start, stop, key, *data in rows:
                if max(*record[2:4], *images[2:4]) < limit:
                    header = Header(start, stop, wholes[key], self._data_key(*data))
                    note.headers[number] = tuple(record), tuple(images), header
        except (OSError, ValueError, TypeError, IndexError, pydantic.ValidationError):
            return _Note()
        return note


def _marks(folder: Path) -> dict[str, _Mark]:
    """The files of a folder."""
    found: dict[str, _Mark] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                about = entry.stat()
                found[entry.name] = entry.name, about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return found


def _packed(note: _Note) -> bytes:
    used = {id(header.whole) for _, _, header in note.headers.values()}
    texts = {id(key): text for text, key in note.keys.items() if id(key) in used}
    places = {key: place for place, key in enumerate(texts)}
    rows = [
        (number, record, images, h.start, h.stop, places[id(h.whole)], h.data.version, h.data.split, h.data.examples)
        for number, (record, images, h) in note.headers.items()
    ]
    keys = [json.loads(text) for text in texts.values()]
    return json.dumps([keys, rows, note.together, note.joined], separators=(",", ":")).encode()


def _key_text(key: Key) -> str:
    return json.dumps(key.model_dump(mode="json", exclude={"data"}))


def _check(data: bytes) -> str:
    """What a whole note begins with: SHA-256 over its content and over what a record may hold."""
    return hashlib.sha256(_meaning().encode() + data).hexdigest()


@functools.cache
def _meaning() -> str:
    return digest(_VERSION, ShardRecord.model_json_schema())
